package directory_test

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/catest"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
)

func TestSignedConformance(t *testing.T) {
	for name, make := range flavours {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			catest.RunSigned(t, catest.Options{Now: now}, func(t *testing.T) catest.Signing {
				return open(t, make(t), directory.Options{})
			})
		})
	}
}

// What stands in signed/ and is not a certificate in force of this CA is told
// apart, each with its reason, and holds up nothing else.
func TestHeldTellsWhatIsWrong(t *testing.T) {
	dir, clock := create(t, directory.CreateOptions{Key: ca.ECP256}), now()
	a := open(t, dir, directory.Options{Now: func() time.Time { return clock }})
	other := open(t, create(t, directory.CreateOptions{Key: ca.ECP256}), directory.Options{})
	issue := func(a *directory.Authority, name node.Certname, ttl time.Duration) (node.Serial, []byte) {
		key, err := ca.GenerateKey(ca.ECP256)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := a.Sign(t.Context(), ca.Request{Certname: name, Serial: a.NewSerial(), Key: key, TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		return node.SerialOf(cert.SerialNumber), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	}
	put := func(file string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, "signed", file), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, good := issue(a, "good.test", 48*time.Hour)
	issue(a, "expired.test", time.Hour)
	serial, revoked := issue(a, "revoked.test", 48*time.Hour)
	if _, err := a.Revoke(t.Context(), []ca.Target{{Serial: serial, Certname: "revoked.test"}}); err != nil {
		t.Fatal(err)
	}
	put("revoked.test.pem", revoked)
	_, foreign := issue(other, "foreign.test", 48*time.Hour)
	put("foreign.test.pem", foreign)
	put("renamed.test.pem", good)
	put("torn.test.pem", good[:100])
	put("text.test.pem", append([]byte("Certificate:\n    Data:\n"), good...))
	chain, err := os.ReadFile(filepath.Join(dir, "ca_crt.pem"))
	if err != nil {
		t.Fatal(err)
	}
	put("ca.test.pem", chain)
	put(".good.test.pem123", good)
	put("notes.txt", nil)
	clock = clock.Add(24 * time.Hour)

	want := map[node.Certname]string{
		"ca.test":      "it is a CA's certificate",
		"expired.test": "it has expired, on 2026-11-23T13:00:00Z",
		"foreign.test": "it is not signed by this CA",
		"good.test":    "",
		"renamed.test": `it was issued to "good.test"`,
		"revoked.test": "it is revoked",
		"text.test":    `it was issued to "good.test"`, // what openssl writes before a PEM is read over
		"torn.test":    "it can't be read",
	}
	listed, err := a.SignedNames(t.Context())
	if err != nil || len(listed) != len(want) {
		t.Errorf("listed %q, %v", listed, err)
	}
	names := make([]node.Certname, len(listed))
	for i, name := range listed {
		names[i] = node.Certname(name)
	}
	existing, err := a.Existing(t.Context(), names)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		problem := ""
		if existing[i].Problem != nil {
			problem = existing[i].Problem.Error()
		}
		if reason, ok := want[name]; !ok || !strings.HasPrefix(problem, reason) || (problem == "") != (reason == "") {
			t.Errorf("%s: got %q, want %q", name, problem, reason)
		}
	}
	if !slices.IsSorted(listed) {
		t.Errorf("not in order: %q", listed)
	}
}
