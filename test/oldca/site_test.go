package oldca_test

import (
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/revoke"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/memory"
	"github.com/espm-project/espm/test/oldca"
)

// manager is espm on a site.
type manager struct {
	*registry.Registry
	authority *directory.Authority
	mu        sync.Mutex
	later     time.Duration // what passed since the test began
}

func (m *manager) passed() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.later
}

func (m *manager) now() time.Time { return time.Now().Add(m.passed()) }

func (m *manager) NewKey(_ context.Context, alg ca.KeyAlgorithm) (crypto.Signer, error) {
	return ca.GenerateKey(alg)
}

// takeOver starts espm on a site.
func takeOver(t *testing.T, s oldca.Site, publish string) *manager {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	m := &manager{}
	var err error
	if m.authority, err = directory.Open(s.Dir, directory.Options{
		Publish: []string{publish}, KeepExpired: 24 * time.Hour, Now: m.now, Uptime: m.passed, Log: log,
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.authority.Close() })
	records, err := store.New(node.AsSelf(t.Context()), memory.Open(memory.NewDisk(), memory.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	queue := revoke.New(records, m.authority, m.now, log)
	m.Registry = registry.New(registry.Options{
		Store: records, Authority: m.authority, Signed: m.authority, Keys: m, Revocations: queue, Now: m.now, Log: log,
		Puppet: bootstrap.Server{Name: "puppet.example.com", Port: 8140}, Algorithm: ca.ECP256,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { queue.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return m
}

// lists checks which serials a CRL file lists, and that the other issuers' CRLs in it are the site's, byte for byte.
func lists(t *testing.T, path string, s oldca.Site, want map[string]bool) {
	t.Helper()
	text := read(t, path)
	block, rest := pem.Decode([]byte(text))
	if string(rest) != strings.Join(s.Foreign, "") {
		t.Errorf("%s: the other issuers' CRLs are not what they were", path)
	}
	crl, err := pemfile.ParseCRL(block)
	if err != nil {
		t.Fatal(err)
	}
	listed, repeated := crl.Entries.Serials()
	if repeated || crl.WeakHash() != "" || crl.Number == nil {
		t.Errorf("%s was not signed anew", path)
	}
	for serial, is := range want {
		n, _ := new(big.Int).SetString(serial, 16)
		if listed.Has(n) != is {
			t.Errorf("%s lists %s: %v, want %v", path, serial, !is, is)
		}
	}
}

// TestSite takes an old site over, imports its certificates, revokes some and lets the expired ones leave the CRL.
// Nothing of what the site had is lost, byte for byte.
func TestSite(t *testing.T) {
	s := oldca.MakeSite(t)
	before := files(t, s.Dir)
	chain := before["ca_crt.pem"]
	hostcrl := filepath.Join(t.TempDir(), "hostcrl.pem")
	published := filepath.Join(t.TempDir(), "crl.pem")
	if err := os.Symlink(hostcrl, published); err != nil {
		t.Fatal(err)
	}
	m := takeOver(t, s, published)
	all := map[string]bool{oldca.ExpiredGMT: true, oldca.ExpiredOffset: true, oldca.ExpiredLower: true, oldca.ExpiredLast: true,
		oldca.Unlisted: true, oldca.Live: true, oldca.Left: true}
	care := func() {
		t.Helper()
		if err := m.authority.Care(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	care()
	lists(t, s.Crl, s, all)

	imported(t, m)
	self := node.AsSelf(t.Context())
	for _, name := range []node.Certname{"sha1.example.com", "twice.example.com"} {
		revs, err := m.Revoke(self, registry.RevokeRequest{Certname: name}, 20*time.Second, false)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, r := range revs {
			if r.Receipt == nil {
				t.Errorf("%s: %s has no receipt", name, r.Serial)
			}
			all[string(r.Serial)] = true
		}
	}
	if !all["4001"] || !all["3001"] || !all["3002"] {
		t.Errorf("revoked: %v", all)
	}
	lists(t, s.Crl, s, all)
	if _, err := m.Provision(self, node.Node{Certname: "curve.example.com"}, registry.Spec{}, "", false); !errors.Is(err, node.ErrForeignCertificate) {
		t.Errorf("a name whose certificate can't be read: %v", err)
	}
	if _, err := m.Provision(self, node.Node{Certname: "new.example.com"}, registry.Spec{}, "", false); err != nil {
		t.Errorf("a new node: %v", err)
	}

	m.mu.Lock()
	m.later = 49 * time.Hour
	m.mu.Unlock()
	care()
	for _, serial := range []string{oldca.ExpiredGMT, oldca.ExpiredOffset, oldca.ExpiredLower, oldca.ExpiredLast} {
		all[serial] = false
	}
	for _, path := range []string{s.Crl, hostcrl} {
		lists(t, path, s, all)
	}
	for _, link := range []string{s.Dir, filepath.Join(s.Dir, "ca_crl.pem"), published} {
		if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
			t.Errorf("%s is no link any more: %v", link, err)
		}
	}
	nothingLost(t, before, files(t, s.Dir))
	if trust, err := m.authority.Trust(t.Context()); err != nil || string(trust.CertificatesPEM) != chain {
		t.Errorf("the chain is not what it was: %v", err)
	}
}

// imported imports all names, and checks the report: a row for each name, with what was wrong.
func imported(t *testing.T, m *manager) {
	t.Helper()
	rows := map[string]registry.Imported{}
	if err := m.Import(node.AsSelf(t.Context()), registry.ImportSpec{}, func(done []registry.Imported, _ int) error {
		for _, in := range done {
			rows[in.Certname+" "+string(in.Serial)] = in
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for row, reason := range map[string]string{
		"sha1.example.com 4001": "", "md5.example.com 4002": "", "twice.example.com 3002": "", "twice.example.com 3001": "",
		"left.example.com 2001": "it is revoked", "expired.example.com 4003": "it has expired", "curve.example.com ": "it can't be read",
		"garbage.example.com ": "it can't be read", "folder.example.com ": "it can't be read", "Upper Case ": "the name breaks a rule",
		"long.example.com 1" + strings.Repeat("0", 40): "more than 20 octets",
	} {
		got, ok := rows[row]
		if want := map[bool]registry.Outcome{true: registry.Adopted, false: registry.Skipped}[reason == ""]; !ok || got.Outcome != want || !strings.Contains(got.Reason, reason) {
			t.Errorf("%s: %+v, want %s, %q", row, got, want, reason)
		}
		delete(rows, row)
	}
	for row, in := range rows {
		t.Errorf("not expected: %s: %+v", row, in)
	}
}

// nothingLost compares the files of a site. Those of revoked certificates are gone, the CRL is another, and the
// inventory has grown.
func nothingLost(t *testing.T, before, after map[string]string) {
	t.Helper()
	for name, was := range before {
		is, has := after[name]
		switch name {
		case "signed/sha1.example.com.pem", "signed/twice.example.com.pem":
			if has {
				t.Errorf("%s is still there", name)
			}
		case "ca_crl.pem":
		case "inventory.txt":
			if added, ok := strings.CutPrefix(is, was+"\n"); !ok || strings.Count(added, "\n") != 1 || !strings.HasSuffix(added, " /CN=new.example.com\n") {
				t.Errorf("the inventory is %q", is)
			}
		default:
			if !has || is != was {
				t.Errorf("%s is not what it was", name)
			}
		}
	}
	for name := range after {
		if _, had := before[name]; !had && name != "espm.lock" && name != "espm_crl_number" && name != "signed/new.example.com.pem" {
			t.Errorf("%s is new", name)
		}
	}
}

// files returns the files of a folder and their contents.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	if err := filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(real, path)
		found[name] = read(t, path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
