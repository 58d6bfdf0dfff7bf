package puppetserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

func TestNewSaysWhatIsWrong(t *testing.T) {
	s := newStub(t)
	garbage := filepath.Join(t.TempDir(), "key.pem")
	check(t, os.WriteFile(garbage, []byte("garbage"), 0o600))
	for want, change := range map[string]func(*Options){
		"must be https://":       func(o *Options) { o.URL = "http://puppet.test:8140" },
		"without a path":         func(o *Options) { o.URL += "/puppet-ca" },
		"client certificate ":    func(o *Options) { o.Key = garbage },
		"cannot read client key": func(o *Options) { o.Key += ".gone" },
		"is open to everybody (mode 0644); mend it: chmod": func(o *Options) { o.Key = o.Certificate },
		"CA bundle: ":    func(o *Options) { o.CA += ".gone" },
		"no certificate": func(o *Options) { o.CA = o.Key },
	} {
		o := s.options
		change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestTrustIsAskedForWhenItMayHaveChanged(t *testing.T) {
	s := newStub(t)
	a := s.open(t)
	trust := func(want ...string) ca.Trust {
		t.Helper()
		got, err := a.Trust(t.Context())
		check(t, err)
		if calls := s.took(); !slices.Equal(calls, want) {
			t.Fatalf("calls %q, want %q", calls, want)
		}
		return got
	}
	first := trust("GET "+chainPath, "GET "+crlPath)
	trust()
	s.advance(crlAge)
	trust("GET " + crlPath + " conditional")
	_, err := s.directory.Revoke(t.Context(), []ca.Target{{Serial: "0ABC"}})
	check(t, err)
	// The file may have been written after the server read it for the last answer.
	s.set(func() { s.mtime = s.now })
	s.advance(crlAge)
	if second := trust("GET " + crlPath + " conditional"); bytes.Equal(first.CRLsPEM, second.CRLsPEM) {
		t.Error("the CRL has changed, and the old one was handed out")
	}
	if _, listed, err := a.listed(t.Context(), "0ABC", "0ABD"); err != nil || !listed["0ABC"] || listed["0ABD"] {
		t.Errorf("listed %v, %v", listed, err)
	}
}

// Whenever the file is written, before, while or after it is read, a later
// question gets the new one.
func TestNoCRLIsMissed(t *testing.T) {
	for _, offset := range []time.Duration{-1500, -1000, -500, -1, 0, 1, 500, 999, 1500} {
		s := newStub(t)
		a := s.open(t)
		base := s.now.Truncate(time.Second)
		s.set(func() { s.now = base })
		first, err := a.Trust(t.Context())
		check(t, err)
		_, err = s.directory.Revoke(t.Context(), []ca.Target{{Serial: "0ABC"}})
		check(t, err)
		s.set(func() { s.mtime = base.Add(offset*time.Millisecond + time.Millisecond) })
		s.advance(crlAge)
		second, err := a.Trust(t.Context())
		check(t, err)
		if bytes.Equal(first.CRLsPEM, second.CRLsPEM) && offset > -1000 {
			t.Errorf("a CRL written %v ms from the answer is never seen", int64(offset))
		}
	}
}

// A server whose clock was set back takes its newer CRL for older than ours.
func TestACRLIsSeenAfterTheClockWasSetBack(t *testing.T) {
	s := newStub(t)
	a := s.open(t)
	_, err := a.Trust(t.Context())
	check(t, err)
	s.advance(-time.Hour)
	_, err = s.directory.Revoke(t.Context(), []ca.Target{{Serial: "0ABC"}})
	check(t, err)
	s.set(func() { s.mtime = s.now })
	s.advance(time.Minute)
	if _, listed, err := a.listed(t.Context(), "0ABC"); err != nil || !listed["0ABC"] {
		t.Errorf("listed %v, %v", listed, err)
	}
}

func TestAnOldCRLDoesForABundleNotForAReceipt(t *testing.T) {
	s := newStub(t)
	a := s.open(t)
	first, err := a.Trust(t.Context())
	check(t, err)
	s.set(func() { s.down = true })
	s.advance(time.Hour)
	if got, err := a.Trust(t.Context()); err != nil || !bytes.Equal(got.CRLsPEM, first.CRLsPEM) {
		t.Errorf("got %v", err)
	}
	if _, _, err := a.listed(t.Context(), "0ABC"); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("a receipt from a CRL of an hour ago: %v", err)
	}
	s.advance(staleAge)
	if _, err := a.Trust(t.Context()); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("a day later: %v", err)
	}
}

func TestClientCertificateIsReadAgain(t *testing.T) {
	s := newStub(t)
	a := s.open(t)
	check(t, func() error { _, err := a.Trust(t.Context()); return err }())
	before := a.credentials.leaf
	touch := func(path string, d time.Duration) { check(t, os.Chtimes(path, time.Time{}, time.Now().Add(d))) }

	check(t, os.WriteFile(s.options.Key, []byte("half a renewal"), 0o600))
	touch(s.options.Key, time.Second)
	s.advance(crlAge)
	check(t, func() error { _, err := a.Trust(t.Context()); return err }())
	if a.credentials.leaf != before {
		t.Error("a certificate without its key is used")
	}
	renewed := s.identify(t)
	touch(s.options.Key, 2*time.Second)
	s.advance(crlAge)
	check(t, func() error { _, err := a.Trust(t.Context()); return err }())
	if !a.credentials.leaf.Equal(renewed) {
		t.Error("the renewed certificate is not used")
	}
	s.advance(2 * time.Hour)
	_, _, err := a.listed(t.Context(), "0ABC")
	if !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "expired") || !strings.Contains(err.Error(), filepath.Base(s.options.Certificate)) {
		t.Errorf("got %v", err)
	}
}

// What an earlier process may have under way comes to its end first.
func TestARevocationOfAnEarlierProcessIsWaitedFor(t *testing.T) {
	s := newStub(t)
	s.options.Quiet, s.options.Interrupted = time.Hour, true
	a := s.open(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := a.Revoke(ctx, []ca.Target{{Serial: "0ABC", Certname: "web1.test"}})
	if calls := s.took(); !errors.Is(err, node.ErrUnavailable) || calls != nil {
		t.Errorf("got %v after calls %q", err, calls)
	}
	a.opts.Quiet = time.Millisecond
	_, _ = a.Revoke(t.Context(), []ca.Target{{Serial: "0ABC", Certname: "web1.test"}})
	if s.took() == nil {
		t.Error("the server was not asked afterwards")
	}
}

// A batch that the server does not finish in time is halved, so that a server which
// searches a long inventory for each name still gets on.
func TestABatchWithoutAnAnswerInTimeIsHalved(t *testing.T) {
	lost := lostError{errors.New("no answer")}
	for what, c := range map[string]struct {
		call, name time.Duration
		want       int
	}{
		"7.9, long CRL":       {1200 * time.Millisecond, 13 * time.Millisecond, 100},
		"8.7, long inventory": {1400 * time.Millisecond, 145 * time.Millisecond, 100},
		"busy machine":        {3 * time.Minute, 100 * time.Millisecond, 100},
		"a minute a name":     {time.Second, time.Minute, 6},
		"nothing fits":        {time.Second, time.Hour, 1},
	} {
		a := &revoker{server: &server{opts: Options{RevokeLimit: 10 * time.Minute}}, batch: maxBatch}
		for range 12 {
			took, err := c.call+time.Duration(a.batch)*c.name, error(nil)
			if took > a.opts.RevokeLimit {
				took, err = a.opts.RevokeLimit, lost
			}
			a.adapt(a.batch, took, err)
		}
		if a.batch != c.want {
			t.Errorf("%s: batches of %d, want %d", what, a.batch, c.want)
		}
	}
	a := &revoker{server: &server{opts: Options{RevokeLimit: 10 * time.Minute}}, batch: maxBatch}
	if a.adapt(100, time.Second, lost); a.batch != maxBatch {
		t.Errorf("a server that went away made the next batch %d", a.batch)
	}
	a.adapt(100, a.opts.RevokeLimit, lost)
	if a.adapt(3, time.Second, nil); a.batch != 50 {
		t.Errorf("three names made the next batch %d", a.batch)
	}
	if a.adapt(50, time.Second, nil); a.batch != maxBatch {
		t.Errorf("after the server got well a batch has %d", a.batch)
	}
}

func TestACallersCSRMustAskForAllItself(t *testing.T) {
	s := newStub(t)
	a := s.open(t)
	key, err := ca.GenerateKey(ca.ECP256)
	check(t, err)
	made, err := makeCSR(ca.Request{Certname: "web1.test", Key: key})
	check(t, err)
	csr, err := ca.ParseCSR(made, "web1.test")
	check(t, err)
	exts, err := ca.ParseExtensions(map[string]string{"pp_role": "web"})
	check(t, err)
	_, err = a.Sign(t.Context(), ca.Request{Certname: "web1.test", CSR: csr, DNSAltNames: []string{"www.test"}, Extensions: exts, TTL: time.Hour})
	invalid := (*node.InvalidError)(nil)
	if !errors.As(err, &invalid) || len(invalid.Violations) != 2 {
		t.Errorf("got %v, want that the CSR lacks a name and an extension", err)
	}
	if calls := s.took(); calls != nil {
		t.Errorf("asked the server: %q", calls)
	}
}

// The client key and certificate are noticed to be others by more than size and time of
// modification, which a copy (rsync, tar) keeps.
func TestRenewalWithTheOldTimes(t *testing.T) {
	s := newStub(t)
	long := time.Unix(1700000000, 0)
	keepTimes := func() {
		for _, path := range []string{s.options.Certificate, s.options.Key, s.options.CA} {
			check(t, os.Chtimes(path, long, long))
		}
	}
	pad := func() {
		text, err := os.ReadFile(s.options.Certificate)
		check(t, err)
		check(t, os.WriteFile(s.options.Certificate, append(text, strings.Repeat("\n", 4000-len(text))...), 0o600))
	}
	pad()
	keepTimes()
	a := s.open(t)
	renewed := s.identify(t)
	pad()
	keepTimes()
	if _, err := a.credentials.current(); err != nil || !a.credentials.leaf.Equal(renewed) {
		t.Errorf("the renewed certificate is not used: %v", err)
	}
}

// A CRL that may not list everything proves nothing, although the CA signed it.
func TestPartOfACRL(t *testing.T) {
	key, err := ca.GenerateKey(ca.ECP256)
	check(t, err)
	issuer := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, SubjectKeyId: []byte{1}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign, PublicKey: key.Public(), PublicKeyAlgorithm: x509.ECDSA,
	}
	list := func(extensions ...pkix.Extension) []byte {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour), ExtraExtensions: extensions,
		}, issuer, key)
		check(t, err)
		return pemfile.Encode(pemfile.CRL, der)
	}
	chain := []*pemfile.RawCertificate{{X509: issuer}}
	if _, err := parseCRLs(list(), chain); err != nil {
		t.Errorf("a whole CRL: %v", err)
	}
	_, err = parseCRLs(list(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}), chain)
	if err == nil || !strings.Contains(err.Error(), "critical extension") {
		t.Errorf("a CRL for a part of the certificates: %v", err)
	}
}
