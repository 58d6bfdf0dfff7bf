package daemon

import (
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/config"
)

const (
	// memoryShare: the daemon uses one part in so many of the machine's memory. Puppet Server needs the rest.
	memoryShare = 4
	// The heap is small and its garbage short-lived. With a quarter of the collections, espm does some 20 % more
	// registrations a second.
	gcPercent = 400
)

// limitMemory sets the garbage collector's memory limit. Near the limit, the collector
// runs more often, but allocations do not fail. GOMEMLIMIT and
// GOGC in the environment override it.
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

// defaultMemory returns the daemon's share of the smallest amount that a source has, or 0 if none has one.
func defaultMemory(sources ...memlimit.Provider) config.Memory {
	var least uint64
	for _, source := range sources {
		if n, err := source(); err == nil && n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return config.Memory(min(least/memoryShare, 1<<62)) // #nosec G115 -- below 1<<62
}
