package doctor

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/test/testbed"
)

func TestClock(t *testing.T) {
	socket := filepath.Join(testbed.Dir(t), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begin := time.Date(2032, 1, 2, 3, 4, 5, 0, time.UTC)
	impossible := func(n int) []Certificate {
		return slices.Repeat([]Certificate{{"1A2B", "web1.test", begin, begin.AddDate(1, 0, 0)}}, n)
	}
	for what, c := range map[string]struct {
		clock     Clock
		err       error
		kept      bool
		kernelErr error
		want      []Severity
		says      string
		mend      string
	}{
		"well":             {kept: true, want: []Severity{OK}, says: "the daemon believes it; a time service keeps the clock right"},
		"no time service":  {want: []Severity{OK}, says: "no time service tells the kernel"},
		"no such call":     {kernelErr: errors.New("adjtimex: not permitted"), want: []Severity{OK}, says: "adjtimex: not permitted"},
		"in doubt":         {clock: Clock{Doubt: "the clock says 2032"}, want: []Severity{Failure}, says: "the clock says 2032. no time service", mend: "timedatectl set-ntp true"},
		"impossible dates": {clock: Clock{Impossible: impossible(2)}, want: []Severity{Warning, Warning}, says: "serial 1A2B of web1.test, valid from 2032-01-02T03:04:05Z to 2033"},
		"many of them":     {clock: Clock{Impossible: impossible(100)}, want: slices.Repeat([]Severity{Warning}, maxImpossible+1), says: "serial 1A2B"},
		"daemon is older":  {err: errors.New("unknown service"), want: []Severity{Warning}, says: "can't be asked about the clock: unknown service"},
	} {
		h := Host{
			Clock:        func(context.Context) (Clock, error) { return c.clock, c.err },
			Synchronized: func() (bool, error) { return c.kept, c.kernelErr },
		}
		h.Config.Listen = "unix://" + socket
		got := checkClock(t.Context(), &h)
		var severities []Severity
		for _, f := range got {
			severities = append(severities, f.Severity)
		}
		if !slices.Equal(severities, c.want) || !strings.Contains(got[0].What, c.says) || got[0].Mend != c.mend {
			t.Errorf("%s: %+v", what, got)
		}
	}
}
