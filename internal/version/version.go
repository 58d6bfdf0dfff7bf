// Package version says which espm this is.
package version

import (
	"cmp"
	_ "embed"
	"runtime"
	"runtime/debug"
	"strings"
)

// released is the version of this source tree. A release changes the file and CHANGELOG.md.
//
//go:embed VERSION
var released string

// Set by the linker when a package is built: see packaging/build.
var (
	number string // of a package that is built with a version of its own
	commit string
)

// Info is what a binary knows of its own making.
type Info struct {
	Version string `json:"version"`
	Commit  string `json:"commit"` // of the source; with "+changes" where that was not all
	Go      string `json:"go"`
	System  string `json:"system"` // operating system and architecture
}

// String is one line.
func (i Info) String() string {
	return i.Version + ", commit " + i.Commit + ", " + i.Go + ", " + i.System
}

const unknown = "unknown"

// Read returns the version of the source tree, and the commit that the linker was told
// or that the go command noted. A commit that neither knows is "unknown".
func Read() Info {
	built, _ := debug.ReadBuildInfo() // nil without modules
	return read(number, commit, built)
}

func read(number, commit string, built *debug.BuildInfo) Info {
	noted := map[string]string{}
	if built != nil {
		for _, s := range built.Settings {
			noted[s.Key] = s.Value
		}
	}
	changed := ""
	if noted["vcs.modified"] == "true" {
		changed = "+changes"
	}
	if revision := noted["vcs.revision"]; commit == "" && revision != "" {
		commit = revision + changed
	}
	return Info{
		Version: cmp.Or(number, strings.TrimSpace(released)),
		Commit:  cmp.Or(commit, unknown),
		Go:      runtime.Version(),
		System:  runtime.GOOS + "/" + runtime.GOARCH,
	}
}
