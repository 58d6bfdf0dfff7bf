package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/node"
)

// What of an authority can't be broken for real in a test: ends and clocks.
func TestAuthority(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	good := func() CA {
		return CA{Subject: "CN=ca", NotAfter: now.AddDate(1, 0, 0), Clock: now.Add(-2 * time.Second), Version: "7.9.5", CRLs: []CRL{
			{"CN=ca", now.Add(-time.Second), now.AddDate(1, 0, 0)}, {"CN=root", now.Add(-time.Hour), time.Time{}},
		}}
	}
	for what, c := range map[string]struct {
		change func(*CA)
		err    error
		worst  Severity
		says   string
		mend   string
	}{
		"well":                {worst: OK, says: "CN=ca until 2027-01-02, Puppet Server's CA 7.9.5"},
		"down":                {err: fmt.Errorf("%w: refused", node.ErrUnavailable), worst: Failure, says: "refused", mend: "systemctl start puppetserver"},
		"no CA":               {err: errors.New("no CA certificate"), worst: Failure, says: "no CA certificate"},
		"CA ends soon":        {change: func(c *CA) { c.NotAfter = now.Add(caSoon - 1) }, worst: Warning, says: "ends 2026-04-02"},
		"CA not begun":        {change: func(c *CA) { c.NotBefore = now.Add(time.Second) }, worst: Failure, says: "not valid before", mend: "timedatectl set-ntp true"},
		"CA ended":            {change: func(c *CA) { c.NotAfter = now }, worst: Failure, says: "ended 2026-01-02"},
		"CRL runs out soon":   {change: func(c *CA) { c.CRLs[1].NextUpdate = now.Add(crlSoon) }, worst: Warning, says: "CRL of CN=root runs out"},
		"CRL ran out":         {change: func(c *CA) { c.CRLs[1].NextUpdate = now }, worst: Failure, says: "CRL of CN=root ran out"},
		"our CRL ran out":     {change: func(c *CA) { c.Version, c.CRLs[0].NextUpdate = "", now }, worst: Failure, says: "the daemon signs a new one", mend: start},
		"CRL of tomorrow":     {change: func(c *CA) { c.CRLs[0].ThisUpdate = now.Add(2 * apart) }, worst: Failure, says: "still to come", mend: "timedatectl set-ntp true"},
		"clock a bit off":     {change: func(c *CA) { c.Clock = now.Add(apart + time.Second) }, worst: Warning, says: "1m1s apart", mend: "timedatectl set-ntp true"},
		"clock far off":       {change: func(c *CA) { c.Clock = now.Add(-2 * farApart) }, worst: Failure, says: "2h0m0s apart", mend: "timedatectl set-ntp true"},
		"a rule is missing":   {change: func(c *CA) { c.Problems = []Problem{{"forbidden", "{ match-request: x }"}} }, worst: Failure, says: "forbidden", mend: "{ match-request: x }"},
		"clock is not known":  {change: func(c *CA) { c.Clock = time.Time{} }, worst: OK, says: "CN=ca"},
		"nothing can be said": {change: func(c *CA) { *c = CA{Problems: []Problem{{"no answer", ""}}} }, worst: Failure, says: "no answer"},
	} {
		h := Host{Now: func() time.Time { return now }, CA: func(context.Context) (CA, error) {
			ca := good()
			if c.change != nil {
				c.change(&ca)
			}
			return ca, c.err
		}}
		got := checkAuthority(t.Context(), &h)
		if len(got) != 1 || got[0].Severity != c.worst || !strings.Contains(got[0].What, c.says) || got[0].Mend != c.mend {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

// Each check finds something to say where there is nothing at all, and none panics.
func TestNothingThere(t *testing.T) {
	var c config.Config
	c.Store.Path, c.Listen, c.ENC.Socket, c.Puppet.Server = "/nowhere/espm.db", "unix:///nowhere/espm.sock", "/nowhere/enc.sock", "puppet.test"
	c.Authority.Directory = &config.Directory{Path: "/nowhere/ca", Publish: []string{"/nowhere/crl.pem"}}
	got := Examine(t.Context(), Host{
		Config: c, Now: time.Now,
		Puppet: func(context.Context, ...string) (map[string]string, error) { return nil, errors.New("no puppet") },
		CA:     func(context.Context) (CA, error) { return CA{}, errors.New("no CA") },

		Certificates: func(context.Context) ([]node.Credential, error) { return nil, errors.New("no certificate") },
		Synchronized: func() (bool, error) { return false, errors.New("no kernel") },
	})
	said := map[string]bool{}
	for _, f := range got {
		said[f.Check] = true
		if f.What == "" {
			t.Errorf("%+v says nothing", f)
		}
	}
	for _, c := range checks {
		if !said[c.name] {
			t.Errorf("%s says nothing", c.name)
		}
	}
	if Worst(got) != Failure {
		t.Error("all is missing, and that is no failure")
	}
}

// What a token has is no failure for not being in a file; a file beside it is told.
func TestKeyInToken(t *testing.T) {
	for what, c := range map[string]struct {
		err  error
		file bool
		want []Severity
		says string
	}{
		"well":                {want: []Severity{OK}, says: "a token has it, and it is the CA's"},
		"away":                {err: errors.New("could not find the token"), want: []Severity{Failure}, says: "could not find the token"},
		"not built for it":    {err: fmt.Errorf("%w: build it so", ErrNoTokens), want: []Severity{Warning}, says: "a token has it; this espm can't look into it: build it so"},
		"a file is there too": {file: true, want: []Severity{Warning}, says: "take it off this machine"},
		"and it is away":      {file: true, err: errors.New("away"), want: []Severity{Warning, Failure}, says: "ca_key.pem is there too"},
	} {
		var h Host
		h.Config.Authority.Directory = &config.Directory{Path: t.TempDir(), Key: "pkcs11:token=a;object=b"}
		h.Token = func() error { return c.err }
		if c.file {
			if err := os.WriteFile(filepath.Join(h.Config.Authority.Directory.Path, "ca_key.pem"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got := checkCAKey(t.Context(), &h)
		var severities []Severity
		for _, f := range got {
			severities = append(severities, f.Severity)
		}
		if !slices.Equal(severities, c.want) || !strings.Contains(got[0].What, c.says) {
			t.Errorf("%s: %+v", what, got)
		}
	}
}
