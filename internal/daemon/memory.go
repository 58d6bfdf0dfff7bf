package daemon

import (
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/config"
)

const (
	// memoryShare is the part of the machine's memory that the daemon keeps to: the rest is Puppet Server's.
	memoryShare = 4
	// The heap is small and its garbage short-lived. Collecting it a quarter as often
	// gives some 20 % more registrations a second.
	gcPercent = 400
)

// limitMemory tells the collector how much memory the daemon may use. Near the limit it
// collects more often; the limit is no bound that an allocation fails at. GOMEMLIMIT and
// GOGC in the environment go first.
func limitMemory(configured config.Memory, log logrus.FieldLogger) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if configured == 0 {
		configured = defaultMemory(memlimit.FromCgroup, memlimit.FromSystem)
	}
	if configured == 0 {
		log.Warn("neither the cgroup nor the system tells how much memory there is; set memory_limit to bound the daemon's")
		return
	}
	debug.SetMemoryLimit(int64(configured))
	log.WithField("memory_limit", configured).Debug("the daemon's memory is limited")
}

// defaultMemory is the daemon's share of the smallest amount that a source gives, 0 if none gives one.
func defaultMemory(sources ...memlimit.Provider) config.Memory {
	var least uint64
	for _, source := range sources {
		if n, err := source(); err == nil && n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return config.Memory(min(least/memoryShare, 1<<62)) // #nosec G115 -- below 1<<62
}
