package daemon

import (
	"errors"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/espm-project/espm/internal/config"
)

func TestDefaultMemory(t *testing.T) {
	none := func() (uint64, error) { return 0, errors.New("no limit is set") }
	unlimited := memlimit.Limit(1 << 63) // as cgroup v1 says that there is none
	machine := memlimit.Limit(8 << 30)
	for name, c := range map[string]struct {
		sources []memlimit.Provider
		want    config.Memory
	}{
		"nothing tells":                {[]memlimit.Provider{none, none}, 0},
		"no limit in the cgroup":       {[]memlimit.Provider{none, machine}, 2 << 30},
		"the cgroup has less":          {[]memlimit.Provider{memlimit.Limit(1 << 30), machine}, 256 << 20},
		"the cgroup allows more":       {[]memlimit.Provider{memlimit.Limit(1 << 40), machine}, 2 << 30},
		"the cgroup's limit is no one": {[]memlimit.Provider{unlimited, machine}, 2 << 30},
	} {
		if got := defaultMemory(c.sources...); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	if got := defaultMemory(memlimit.FromCgroup, memlimit.FromSystem); got < 16<<20 {
		t.Errorf("this machine: %v", got)
	}
}
