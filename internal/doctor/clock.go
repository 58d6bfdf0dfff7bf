package doctor

import (
	"context"
	"strings"
	"time"
)

// Clock is how the daemon judges the clock of its host.
type Clock struct {
	Doubt string // why the daemon does not believe it; "": it does
	// Impossible are valid certificates whose dates can't be right.
	Impossible []Certificate
}

// Certificate is a certificate that is valid.
type Certificate struct {
	Serial, Certname    string
	NotBefore, NotAfter time.Time
}

// maxImpossible is how many certificates the check names.
const maxImpossible = 20

// checkClock asks the daemon whether it believes the clock, and the kernel whether a time service keeps it right. The latter is
// no warning: the clock of a virtual machine may be kept by its host, of which the kernel does not know.
func checkClock(ctx context.Context, h *Host) []Finding {
	kernel := "no time service tells the kernel that it keeps the clock right (timedatectl)"
	if kept, err := h.Synchronized(); err != nil {
		kernel = err.Error()
	} else if kept {
		kernel = "a time service keeps the clock right"
	}
	path, local := strings.CutPrefix(h.Config.Listen, "unix://")
	if !local || dial(ctx, path) != nil {
		return []Finding{found(OK, "", "%s; no daemon answers on a local socket that could say more", kernel)}
	}
	clock, err := h.Clock(ctx)
	if err != nil {
		return []Finding{found(Warning, "", "%s; the daemon can't be asked about the clock: %v", kernel, err)}
	}
	var all []Finding
	if clock.Doubt != "" {
		all = append(all, found(Failure, "timedatectl set-ntp true", "%s. %s", clock.Doubt, kernel))
	}
	for i, c := range clock.Impossible {
		if i == maxImpossible {
			all = append(all, found(Warning, "", "%d more certificates have impossible dates: espm cert list --impossible-dates", len(clock.Impossible)-i))
			break
		}
		all = append(all, found(Warning, "", "serial %s of %s, valid from %s to %s, has dates that a wrong clock left: terminate and provision the node",
			c.Serial, c.Certname, c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339)))
	}
	return good(all, "the daemon believes it; %s", kernel)
}
