package version

import (
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	noted := func(version string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: version}, Settings: settings}
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "abc"}
	tree := strings.TrimSpace(released)
	for name, c := range map[string]struct {
		number, commit          string
		built                   *debug.BuildInfo
		wantVersion, wantCommit string
	}{
		"nothing known":     {wantVersion: tree, wantCommit: "unknown"},
		"a package":         {number: "1.2.3", commit: "def", built: noted("(devel)", revision), wantVersion: "1.2.3", wantCommit: "def"},
		"go install":        {built: noted("v1.2.3"), wantVersion: tree, wantCommit: "unknown"},
		"go build":          {built: noted("(devel)", revision, debug.BuildSetting{Key: "vcs.modified", Value: "false"}), wantVersion: tree, wantCommit: "abc"},
		"go build, changed": {built: noted("(devel)", revision, debug.BuildSetting{Key: "vcs.modified", Value: "true"}), wantVersion: tree, wantCommit: "abc+changes"},
	} {
		t.Run(name, func(t *testing.T) {
			want := Info{Version: c.wantVersion, Commit: c.wantCommit, Go: runtime.Version(), System: runtime.GOOS + "/" + runtime.GOARCH}
			if got := read(c.number, c.commit, c.built); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}
