package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/ca/catest"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

// outcome is an item of `espm cert import -o json`.
type outcome struct {
	Certname, Serial, UID, Outcome, Reason string
}

// signed runs the suite of what an import asks of an authority.
func (s *ownCA) signed(t *testing.T) {
	authority := s.authority(t, s.direct())
	catest.RunSigned(t, catest.Options{}, func(*testing.T) catest.Signing { return authority })
}

// importOf runs `espm cert import` and returns what it says of each name.
func (s *ownCA) importOf(t *testing.T, args ...string) map[string]outcome {
	t.Helper()
	var list []outcome
	out := s.espm.espm(t, append([]string{"cert", "import", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("espm cert import: %v\n%s", err, out)
	}
	all := map[string]outcome{}
	for _, in := range list {
		in.Outcome = strings.ToLower(strings.TrimPrefix(in.Outcome, "IMPORT_OUTCOME_"))
		all[in.Certname] = in
	}
	return all
}

// imported takes over a site with an agent that got its certificate the old
// way: nothing changes for it, until it is terminated.
func (s *ownCA) imported(t *testing.T) {
	old := s.oldAgent(t, "old1.example.com")
	old.run(t).exits(t, runFailed).says(t, "not registered")
	a := s.authority(t, s.direct())
	first, second, gone := s.sign(t, a, newRequest(t)), s.sign(t, a, newRequest(t)), s.sign(t, a, newRequest(t))
	s.setStatus(t, gone.Subject.CommonName, "revoked") // without cleaning it
	s.espm.provision(t, "new1.example.com")
	if !s.holds("signed", node.Certname(gone.Subject.CommonName)) {
		t.Fatal("a revoke removed the certificate: nothing is left to skip")
	}
	before := s.inForce(t)
	s.listRefused(t, first.Subject.CommonName)

	all := s.importOf(t, "--all")
	for name, want := range map[string]registry.Outcome{
		old.certname:               registry.WouldAdopt,
		first.Subject.CommonName:   registry.WouldAdopt,
		gone.Subject.CommonName:    registry.Skipped,
		"puppet":                   registry.Skipped, // the server's own
		"new1.example.com":         "already_imported",
		"no-such-node.example.com": "",
	} {
		if got := all[name]; got.Outcome != string(want) {
			t.Errorf("%s: %+v, want %s", name, got, want)
		}
	}
	if got := all[gone.Subject.CommonName]; got.Reason != "it is revoked" {
		t.Errorf("revoked by others: %+v", got)
	}
	if r := s.espm.try(t, "node", "show", old.certname); r.code == 0 {
		t.Error("a dry run registered a node")
	}

	names := []string{old.certname, first.Subject.CommonName, gone.Subject.CommonName, second.Subject.CommonName}
	got := s.importOf(t, append(names, "--label", "from=puppet", "--apply")...)
	if got[old.certname].Outcome != string(registry.Adopted) || got[gone.Subject.CommonName].Outcome != string(registry.Skipped) || len(got) != len(names) {
		t.Errorf("imported: %+v", got)
	}
	if serial := node.SerialOf(first.SerialNumber); got[first.Subject.CommonName].Serial != string(serial) {
		t.Errorf("serial %s, want %s", got[first.Subject.CommonName].Serial, serial)
	}
	if again := s.importOf(t, append(names, "--apply")...); again[old.certname].Outcome != "already_imported" {
		t.Errorf("imported again: %+v", again[old.certname])
	}
	if after := s.inForce(t); len(after) != len(before) {
		t.Errorf("%d names have certificates in force, before the import %d", len(after), len(before))
	}

	old.run(t).exits(t, changed).applied(t, "site", "compiled from site.pp\n")
	old.run(t).exits(t, unchanged)
	s.terminate(t, old)
	s.espm.espm(t, "node", "terminate", first.Subject.CommonName, "--wait", "30s")
	for _, name := range []string{old.certname, first.Subject.CommonName} {
		if alive := s.alive(t, node.Certname(name)); alive != nil {
			t.Errorf("terminated, and %s is in force for %s", alive, name)
		}
	}
	if alive := s.alive(t, node.Certname(second.Subject.CommonName)); len(alive) != 1 {
		t.Errorf("its neighbour has %v", alive)
	}
}

// listRefused: a file that is no certificate fails the server's list, which
// keeps nobody from importing by name.
func (s *ownCA) listRefused(t *testing.T, name string) {
	t.Helper()
	path := filepath.Join(s.CA, "signed", "torn.example.com.pem")
	check(t, os.WriteFile(path, []byte("-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n"), 0o644))
	defer func() { check(t, os.Remove(path)) }()
	if r := s.espm.try(t, "cert", "import", "--all"); r.code == 0 || !strings.Contains(r.stderr, "500") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	got := s.importOf(t, name, "torn.example.com")
	if got[name].Outcome != string(registry.WouldAdopt) || !strings.Contains(got["torn.example.com"].Reason, "can't be read") {
		t.Errorf("by name: %+v", got)
	}
}

// oldAgent is an instance that asked for a certificate by itself, and an
// admin signed it.
func (s *ownCA) oldAgent(t *testing.T, certname string) agent {
	t.Helper()
	a := agent{lab: s.lab, host: s.Host, certname: certname, dir: filepath.Join(s.Root, "instances", certname)}
	check(t, os.MkdirAll(a.dir, 0o755))
	conf := fmt.Sprintf("[main]\ncertname = %s\nserver = localhost\nserverport = %d\nssldir = $confdir/ssl\nwaitforcert = 0\n", certname, s.Port)
	check(t, os.WriteFile(filepath.Join(a.dir, "puppet.conf"), []byte(conf), 0o644))
	a.run(t).exits(t, runFailed)
	s.setStatus(t, certname, "signed")
	return a
}

// setStatus does what `puppetserver ca sign` and `ca revoke` do.
func (s *ownCA) setStatus(t *testing.T, name, state string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(s.clientFiles())
	check(t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: s.server.pool, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	url := fmt.Sprintf("https://localhost:%d/puppet-ca/v1/certificate_status/%s", s.Port, name)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, strings.NewReader(`{"desired_state":"`+state+`"}`))
	check(t, err)
	req.Header.Set("Content-Type", "application/json")
	resp, err := transport.RoundTrip(req)
	check(t, err)
	check(t, resp.Body.Close())
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("%s of %s: %s", state, name, resp.Status)
	}
}
