// Package doctor checks an espm and its host for faults, and says how to mend each. It changes nothing itself.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/node"
)

// Severity is how bad a finding is. The worst one is also the exit code of `espm doctor`.
type Severity int

// The severities, from good to bad.
const (
	OK      Severity = 0
	Warning Severity = 1 // it works, but not for all callers, or not for long
	Failure Severity = 2 // something does not work
)

func (s Severity) String() string {
	switch s {
	case OK:
		return "ok"
	case Warning:
		return "warning"
	default:
		return "failure"
	}
}

// MarshalText makes JSON show the name of a severity.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Finding is the result of a check.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	What     string   `json:"what"`
	Mend     string   `json:"mend,omitempty"` // a command for root's shell, or the text to add to a file; empty if What says it
}

// Host is the input of the checks.
type Host struct {
	Config config.Config
	// Puppet returns the settings of the Puppet Server on this host; ErrNoPuppet if there is none.
	Puppet func(ctx context.Context, names ...string) (map[string]string, error)
	// CA returns the authority's state. It changes nothing.
	CA func(ctx context.Context) (CA, error)
	// Token checks that the token's key is readable and is the CA's; ErrNoTokens if this espm can't read tokens. It
	// is called only if the configuration names a token.
	Token func() error
	// Unrevoked asks the daemon for the valid certificates that the CA could not revoke. It is called only if the daemon
	// answers on a local socket.
	Unrevoked func(ctx context.Context) ([]Unrevoked, error)
	// Clock asks the daemon about the clock. Asked only where the daemon answers on a local socket.
	Clock func(ctx context.Context) (Clock, error)
	// Synchronized says whether a time service keeps the kernel's clock right.
	Synchronized func() (bool, error)
	// Certificates returns those that espm itself shows. Tokens asks the daemon for the tokens that expire; it is called
	// only if the daemon answers on a local socket.
	Certificates, Tokens func(ctx context.Context) ([]node.Credential, error)
	Now                  func() time.Time

	settings  map[string]string // of Puppet; nil if unknown
	puppetErr error             // why settings is nil
}

// CA is an authority's state.
type CA struct {
	Subject string
	// NotBefore and NotAfter are of the CA's certificate.
	NotBefore, NotAfter time.Time

	CRLs     []CRL
	Version  string    // of Puppet Server; "": espm is the CA
	Clock    time.Time // of Puppet Server; zero: not known
	Problems []Problem
}

// Unrevoked is a valid certificate whose revocation was ordered, and that the CA can't revoke.
type Unrevoked struct {
	Serial, Certname string
	NotAfter         time.Time
}

// CRL is one of its CRLs.
type CRL struct {
	Issuer                 string
	ThisUpdate, NextUpdate time.Time
}

// Problem is a fault of an authority.
type Problem struct{ What, Mend string }

// check is one check.
type check struct {
	name string
	look func(ctx context.Context, h *Host) []Finding
}

// checks are sorted so that a check comes after those that it depends on.
var checks = []check{
	{"store", checkStore},
	{"disk", checkDisk},
	{"ca key", checkCAKey},
	{"daemon", checkDaemon},
	{"clock", checkClock},
	{"revocations", checkRevocations},
	{"credentials", checkCredentials},
	{"enc socket", checkENCSocket},
	{"group", checkGroup},
	{"puppet.conf", checkPuppetConf},
	{"enc", checkENC},
	{"version", checkVersion},
	{"authority", checkAuthority},
	{"hostcrl", checkHostCRL},
}

// limit bounds the time of all checks together.
const limit = 2 * time.Minute

// ErrNoPuppet says that there is no Puppet on this host. That is no fault.
var ErrNoPuppet = errors.New("there is no Puppet on this host")

// ErrNoTokens says that this espm can't read tokens, as it is built without them.
var ErrNoTokens = errors.New("this espm can't look into it")

// noSettings is the finding of a check of Puppet's settings if they are unknown.
func (h *Host) noSettings() []Finding {
	if errors.Is(h.puppetErr, ErrNoPuppet) {
		return []Finding{found(OK, "", "%v", ErrNoPuppet)}
	}
	return []Finding{found(Failure, "", "Puppet on this host can't be asked: %v", h.puppetErr)}
}

// Examine runs all checks. Each returns at least one finding.
func Examine(ctx context.Context, h Host) []Finding {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// Called once for all checks, as it starts a Ruby.
	h.settings, h.puppetErr = h.Puppet(ctx, "user", "group", "config", "node_terminus", "external_nodes", "hostcrl", "certname")
	var all []Finding
	for _, c := range checks {
		found := c.look(ctx, &h)
		for i := range found {
			found[i].Check = c.name
		}
		all = append(all, found...)
	}
	return all
}

// Worst returns the worst severity.
func Worst(findings []Finding) Severity {
	worst := OK
	for _, f := range findings {
		worst = max(worst, f.Severity)
	}
	return worst
}

func found(s Severity, mend, format string, args ...any) Finding {
	return Finding{Severity: s, What: fmt.Sprintf(format, args...), Mend: mend}
}

// good returns a finding without a fault.
func good(all []Finding, format string, args ...any) []Finding {
	if len(all) == 0 {
		return []Finding{found(OK, "", format, args...)}
	}
	return all
}
