// Package doctor looks for all that can be wrong with an espm on its host, and
// says how each is mended. It changes nothing itself.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/espm-project/espm/internal/config"
)

// Severity says how bad a finding is. It is the exit code of `espm doctor`, too.
type Severity int

// From good to bad.
const (
	OK      Severity = 0
	Warning Severity = 1 // it works, and will not for ever, or not for all
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

// MarshalText makes JSON readable.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Finding is what a check found.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	What     string   `json:"what"`
	Mend     string   `json:"mend,omitempty"` // a command for root's shell, or what to add where; "": What says it
}

// Host is what the checks look at.
type Host struct {
	Config config.Config
	// Puppet asks Puppet on this host for its server's settings; ErrNoPuppet where there is none.
	Puppet func(ctx context.Context, names ...string) (map[string]string, error)
	// CA asks the authority how it stands, without changing it.
	CA func(ctx context.Context) (CA, error)
	// Token looks whether the token's key can be had and is the CA's; ErrNoTokens where this
	// espm can't tell. Asked only where the configuration names one.
	Token func() error
	// Unrevoked asks the daemon which certificates the CA could not revoke, and that have not expired. Asked only where
	// the daemon answers on a local socket.
	Unrevoked func(ctx context.Context) ([]Unrevoked, error)
	Now       func() time.Time

	settings  map[string]string // of Puppet; nil: they are not known
	puppetErr error             // why not
}

// CA is how an authority stands.
type CA struct {
	Subject string
	// NotBefore and NotAfter are of the CA's certificate.
	NotBefore, NotAfter time.Time

	CRLs     []CRL
	Version  string    // of Puppet Server; "": espm is the CA
	Clock    time.Time // of Puppet Server; zero: not known
	Problems []Problem
}

// Unrevoked is a certificate that was to be revoked, which the CA can't. It is valid.
type Unrevoked struct {
	Serial, Certname string
	NotAfter         time.Time
}

// CRL is one of its CRLs.
type CRL struct {
	Issuer                 string
	ThisUpdate, NextUpdate time.Time
}

// Problem is what an authority lacks.
type Problem struct{ What, Mend string }

// check looks at one thing.
type check struct {
	name string
	look func(ctx context.Context, h *Host) []Finding
}

// checks are in the order in which things depend on each other.
var checks = []check{
	{"store", checkStore},
	{"disk", checkDisk},
	{"ca key", checkCAKey},
	{"daemon", checkDaemon},
	{"revocations", checkRevocations},
	{"enc socket", checkENCSocket},
	{"group", checkGroup},
	{"puppet.conf", checkPuppetConf},
	{"enc", checkENC},
	{"version", checkVersion},
	{"authority", checkAuthority},
	{"hostcrl", checkHostCRL},
}

// limit bounds a whole examination.
const limit = 2 * time.Minute

// ErrNoPuppet says that there is no Puppet on this host, which may well be so.
var ErrNoPuppet = errors.New("there is no Puppet on this host")

// ErrNoTokens says that this espm can't look into tokens.
var ErrNoTokens = errors.New("this espm can't look into it")

// noSettings is what a check of Puppet's settings finds where there are none.
func (h *Host) noSettings() []Finding {
	if errors.Is(h.puppetErr, ErrNoPuppet) {
		return []Finding{found(OK, "", "%v", ErrNoPuppet)}
	}
	return []Finding{found(Failure, "", "Puppet on this host can't be asked: %v", h.puppetErr)}
}

// Examine makes all checks. Each gives one finding at least.
func Examine(ctx context.Context, h Host) []Finding {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// It starts a Ruby: once, for all.
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

// good is what is found where nothing is wrong.
func good(all []Finding, format string, args ...any) []Finding {
	if len(all) == 0 {
		return []Finding{found(OK, "", format, args...)}
	}
	return all
}
