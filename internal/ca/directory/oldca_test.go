package directory_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/test/oldca"
)

// openOld opens a CA that openssl made just now.
func openOld(t *testing.T, dir string) *directory.Authority {
	t.Helper()
	return open(t, dir, directory.Options{Now: time.Now})
}

// TestOldRoots: a root that Go's x509 can't read or verify neither stops espm nor gets lost. Its certificate and its CRL of
// version 1 are carried along byte for byte, and OpenSSL agrees with what espm makes.
func TestOldRoots(t *testing.T) {
	for _, root := range oldca.Roots() {
		t.Run(string(root), func(t *testing.T) {
			t.Parallel()
			dir := oldca.Make(t, root)
			chain := read(t, dir, "ca_crt.pem")
			foreign := strings.SplitAfter(read(t, dir, "ca_crl.pem"), "-----END X509 CRL-----\n")[1]
			copied := filepath.Join(t.TempDir(), "crl.pem")
			a := open(t, dir, directory.Options{Now: time.Now, Publish: []string{copied}})
			good, bad := sign(t, a, "good.example.com"), sign(t, a, "bad.example.com")
			badPath := filepath.Join(t.TempDir(), "bad.pem")
			write(t, badPath, read(t, dir, "signed", "bad.example.com.pem"))
			revoke(t, a, target(bad))
			status, err := a.Status(t.Context())
			if err != nil || len(status.Foreign) != 1 || status.Foreign[0].Entries != 1 || status.Foreign[0].Outside || status.Foreign[0].Issuer != "CN=Old Root" {
				t.Errorf("status %+v, %v", status, err)
			}
			for _, path := range []string{filepath.Join(dir, "ca_crl.pem"), copied} {
				if got := strings.SplitAfter(read(t, path), "-----END X509 CRL-----\n"); len(got) != 3 || got[1] != foreign {
					t.Errorf("%s has %d parts, the second not the root's CRL", path, len(got)-1)
				}
			}
			if trust, err := a.Trust(t.Context()); err != nil || string(trust.CertificatesPEM) != chain {
				t.Errorf("the chain is not what it was: %v", err)
			}
			if found, err := a.Find(t.Context(), ca.Query{Certname: "good.example.com", Serial: node.SerialOf(good.SerialNumber)}); err != nil || found.Certificate == nil {
				t.Errorf("Find: %+v, %v", found, err)
			}
			// OpenSSL takes a negative serial, but not in a chain that it is to check strictly.
			verify := []string{"verify", "-crl_check_all", "-auth_level", "0", "-CAfile", filepath.Join(dir, "ca_crt.pem"), "-CRLfile", filepath.Join(dir, "ca_crl.pem")}
			openssl(t, append(verify, filepath.Join(dir, "signed", "good.example.com.pem"))...)
			crl, err := pemfile.ParseCRL(firstBlock(read(t, copied)))
			if err != nil || len(crl.AuthorityKeyID) != 20 || !bytes.Equal(good.AuthorityKeyId, crl.AuthorityKeyID) {
				t.Errorf("the CRL names the key %X, a leaf %X: %v", crl.AuthorityKeyID, good.AuthorityKeyId, err)
			}
			for e := range crl.Entries.All() {
				if when, ok := e.Time(); !ok || when.After(crl.ThisUpdate) {
					t.Errorf("an entry is dated %v, the CRL %v", when, crl.ThisUpdate)
				}
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := directory.Inspect(dir, false); err != nil {
				t.Errorf("Inspect: %v", err)
			}
		})
	}
}

// TestUnreadableLeaf: a leaf that Go can't read is not absent. While it may be in force it blocks its name,
// and its own revocation removes it.
func TestUnreadableLeaf(t *testing.T) {
	dir := oldca.Make(t, oldca.SHA1)
	oldca.Leaf(t, dir, "curve.example.com", oldca.BrainpoolKey(), "-set_serial", "291")
	oldca.Leaf(t, dir, "revoked.example.com", oldca.BrainpoolKey(), "-set_serial", "292")
	oldca.Leaf(t, dir, "expired.example.com", oldca.BrainpoolKey(), "-set_serial", "293", "-days", "-1")
	oldca.Leaf(t, dir, "negative.example.com", oldca.RSAKey(), "-set_serial", "-5")
	write(t, filepath.Join(dir, "signed", "garbage.example.com.pem"), "not a certificate")
	a := openOld(t, dir)
	revoke(t, a, ca.Target{Serial: "0124"})
	for name, foreign := range map[node.Certname]bool{
		"curve.example.com": true, "negative.example.com": true, "garbage.example.com": true,
		"revoked.example.com": false, "expired.example.com": false, "none.example.com": false,
	} {
		cert, err := a.Check(t.Context(), ca.Request{Certname: name})
		if cert != nil || errors.Is(err, node.ErrForeignCertificate) != foreign || !foreign && err != nil {
			t.Errorf("%s: Check says %v, %v; want ErrForeignCertificate: %v", name, cert, err, foreign)
		}
		if found, err := a.Find(t.Context(), ca.Query{Certname: name, Serial: "7B7B"}); err != nil || found.Issued {
			t.Errorf("%s: Find of another serial: %+v, %v", name, found, err)
		}
	}
	existing, err := a.Existing(t.Context(), []node.Certname{"curve.example.com", "garbage.example.com", "none.example.com"})
	if err != nil || existing[0].Problem == nil || existing[1].Problem == nil || existing[2].Problem != nil {
		t.Errorf("Existing: %+v, %v", existing, err)
	}
	revoke(t, a, ca.Target{Serial: "0123", Certname: "curve.example.com"}, ca.Target{Serial: "0999", Certname: "garbage.example.com"})
	if exists(t, dir, "signed", "curve.example.com.pem") || !exists(t, dir, "signed", "garbage.example.com.pem") {
		t.Error("the revocation of what can't be read removes its own file, and no other")
	}
	if _, err := a.Check(t.Context(), ca.Request{Certname: "curve.example.com"}); err != nil {
		t.Errorf("after its revocation: %v", err)
	}
}

// TestWeakLeaf: what the CA signed by MD5 or SHA-1 is the CA's own, and can be imported and revoked.
func TestWeakLeaf(t *testing.T) {
	dir := oldca.Make(t, oldca.SHA1)
	for name, hash := range map[string]string{"md5.example.com": "-md5", "sha1.example.com": "-sha1"} {
		oldca.Leaf(t, dir, name, oldca.RSAKey(), hash)
	}
	a := openOld(t, dir)
	for _, name := range []node.Certname{"md5.example.com", "sha1.example.com"} {
		existing, err := a.Existing(t.Context(), []node.Certname{name})
		if err != nil || existing[0].Problem != nil || existing[0].Certificate == nil {
			t.Fatalf("%s: %+v, %v", name, existing, err)
		}
		revoke(t, a, target(existing[0].Certificate))
	}
}

// TestNothingThatCantBeRevoked: a serial that no CRL of RFC 5280 lists is not imported.
func TestNothingThatCantBeRevoked(t *testing.T) {
	dir := oldca.Make(t, oldca.SHA1)
	oldca.Leaf(t, dir, "long.example.com", oldca.RSAKey(), "-set_serial", "0x01"+strings.Repeat("00", 20))
	oldca.Leaf(t, dir, "longest.example.com", oldca.RSAKey(), "-set_serial", "0x"+strings.Repeat("ff", 20))
	a := openOld(t, dir)
	existing, err := a.Existing(t.Context(), []node.Certname{"long.example.com", "longest.example.com"})
	if err != nil || !errors.Is(existing[0].Problem, ca.ErrImpossible) || !strings.Contains(existing[0].Problem.Error(), "20 octets") {
		t.Errorf("21 octets: %+v, %v", existing, err)
	}
	if existing[1].Problem != nil {
		t.Errorf("20 octets: %v", existing[1].Problem)
	}
	revoke(t, a, target(existing[1].Certificate))
}

// TestOneUnreadableFile: a file in signed/ that can't be read costs its own name, not the list.
func TestOneUnreadableFile(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	a := open(t, dir, directory.Options{})
	sign(t, a, "good.example.com")
	loop := filepath.Join(dir, "signed", "loop.example.com.pem")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "signed", "folder.example.com.pem"), 0o755), os.Symlink(loop, loop)); err != nil {
		t.Fatal(err)
	}
	existing, err := a.Existing(t.Context(), []node.Certname{"folder.example.com", "good.example.com", "loop.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"it can't be read: ", "", "it can't be read: "} {
		if got := existing[i].Problem; (got != nil) != (want != "") || got != nil && !strings.HasPrefix(got.Error(), want) {
			t.Errorf("name %d: %v, want %q", i, got, want)
		}
	}
	if existing[1].Certificate == nil {
		t.Error("the good one got lost")
	}
}

// flawedCRL is a CRL as other programs sign it.
type flawedCRL struct {
	entries   []pkix.RevokedCertificate
	emptyList bool // the list of entries is there and empty
	version1  bool
	sha1      bool
}

// sign writes it to the directory of an RSA CA.
func (f flawedCRL) sign(t *testing.T, dir string, thisUpdate time.Time) {
	t.Helper()
	cert, err := pemfile.First([]byte(read(t, dir, "ca_crt.pem")))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(read(t, dir, "ca_key.pem")))
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	marshal := func(value any, params string) asn1.RawValue {
		der, err := asn1.MarshalWithParams(value, params)
		if err != nil {
			t.Fatal(err)
		}
		return asn1.RawValue{FullBytes: der}
	}
	hash, algorithm := crypto.SHA256, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	if f.sha1 {
		hash, algorithm = crypto.SHA1, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}
	}
	identifier := pkix.AlgorithmIdentifier{Algorithm: algorithm, Parameters: asn1.NullRawValue}
	tbs := []asn1.RawValue{marshal(identifier, ""), {FullBytes: cert.RawSubject}, marshal(thisUpdate, ""), marshal(thisUpdate.Add(20000*time.Hour), "")}
	if f.emptyList || len(f.entries) > 0 {
		tbs = append(tbs, marshal(f.entries, ""))
	}
	if !f.version1 {
		keyID := marshal(struct {
			ID []byte `asn1:"tag:0"`
		}{cert.SubjectKeyId}, "")
		tbs = append([]asn1.RawValue{marshal(1, "")}, append(tbs, marshal([]pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 35}, Value: keyID.FullBytes},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 20}, Value: marshal(7, "").FullBytes},
		}, "explicit,tag:0"))...)
	}
	signed := marshal(tbs, "")
	digest := hash.New()
	digest.Write(signed.FullBytes)
	signature, err := key.Sign(rand.Reader, digest.Sum(nil), hash)
	if err != nil {
		t.Fatal(err)
	}
	der := marshal([]asn1.RawValue{signed, marshal(identifier, ""), marshal(asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}, "")}, "")
	write(t, filepath.Join(dir, "ca_crl.pem"), string(pemfile.Encode(pemfile.CRL, der.FullBytes)))
}

// TestTakeOverMends: the CRL that another program left is signed anew where it is not as RFC 5280 wants it, and only then.
func TestTakeOverMends(t *testing.T) {
	now := now()
	entry := func(serial int64, when time.Time) pkix.RevokedCertificate {
		return pkix.RevokedCertificate{SerialNumber: big.NewInt(serial), RevocationTime: when}
	}
	old := now.Add(-time.Hour)
	for name, test := range map[string]struct {
		crl  flawedCRL
		want string
	}{
		"sound":       {flawedCRL{entries: []pkix.RevokedCertificate{entry(5, old), entry(6, old)}}, ""},
		"repeated":    {flawedCRL{entries: []pkix.RevokedCertificate{entry(5, old), entry(6, old), entry(5, old)}}, "more than once"},
		"dated later": {flawedCRL{entries: []pkix.RevokedCertificate{entry(5, old), entry(6, now.Add(40*time.Hour))}}, "dated after"},
		"empty list":  {flawedCRL{emptyList: true}, "empty"},
		"version 1":   {flawedCRL{version1: true, entries: []pkix.RevokedCertificate{entry(5, old)}}, "lacks"},
		"SHA-1":       {flawedCRL{sha1: true, entries: []pkix.RevokedCertificate{entry(5, old)}}, "SHA-1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := create(t, directory.CreateOptions{Key: ca.RSA2048})
			test.crl.sign(t, dir, now.Add(-time.Minute))
			before := read(t, dir, "ca_crl.pem")
			log, hook := logtest.NewNullLogger()
			a := open(t, dir, directory.Options{Log: log})
			if err := a.Care(t.Context()); err != nil {
				t.Fatal(err)
			}
			after := read(t, dir, "ca_crl.pem")
			if test.want == "" {
				if after != before {
					t.Errorf("it was signed anew: %v", hook.LastEntry())
				}
				return
			}
			if e := hook.LastEntry(); e == nil || !strings.Contains(fmt.Sprint(e.Data["flaw"]), test.want) {
				t.Fatalf("logged %+v, want that %q is why", e, test.want)
			}
			checkMended(t, after, test.crl.entries)
			hook.Reset()
			if err := a.Care(t.Context()); err != nil || hook.LastEntry() != nil || read(t, dir, "ca_crl.pem") != after {
				t.Errorf("it is signed anew once more: %v, %v", hook.LastEntry(), err)
			}
		})
	}
}

func firstBlock(text string) *pem.Block {
	block, _ := pem.Decode([]byte(text))
	return block
}

// TestCRLOutsideTheChain: the CRL of an issuer that the chain does not have is carried along. That it has ended is no alarm.
func TestCRLOutsideTheChain(t *testing.T) {
	dir, other := create(t, directory.CreateOptions{Key: ca.ECP256}), filepath.Join(t.TempDir(), "other")
	if err := directory.Create(other, directory.CreateOptions{Host: "other.example.com", Key: ca.ECP256, Validity: 24 * time.Hour,
		Now: func() time.Time { return now().AddDate(-3, 0, 0) }}); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "ca_crl.pem"), read(t, dir, "ca_crl.pem")+read(t, other, "ca_crl.pem"))
	log, hook := logtest.NewNullLogger()
	a := open(t, dir, directory.Options{Log: log})
	if err := a.Care(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, e := range hook.AllEntries() {
		t.Errorf("logged %q, %v", e.Message, e.Data)
	}
	revoke(t, a, ca.Target{Serial: "0A0B"})
	if !strings.HasSuffix(read(t, dir, "ca_crl.pem"), read(t, other, "ca_crl.pem")) {
		t.Error("the other issuer's CRL got lost")
	}
	if status, err := a.Brief(t.Context()); err != nil || len(status.Foreign) != 1 || !status.Foreign[0].Outside {
		t.Errorf("status %+v, %v", status, err)
	}
}

// checkMended checks that a CRL has those serials, each once and not dated later than itself.
func checkMended(t *testing.T, text string, entries []pkix.RevokedCertificate) {
	t.Helper()
	crl, err := pemfile.ParseCRL(firstBlock(text))
	if err != nil {
		t.Fatal(err)
	}
	if crl.EmptyEntries || crl.Version != 2 || crl.Number == nil || crl.AuthorityKeyID == nil || crl.WeakHash() != "" {
		t.Errorf("the CRL is %+v", crl)
	}
	set, repeated := crl.Entries.Serials()
	for _, e := range entries {
		if !set.Has(e.SerialNumber) {
			t.Errorf("serial %d got lost", e.SerialNumber)
		}
	}
	for e := range crl.Entries.All() {
		if when, ok := e.Time(); !ok || when.After(crl.ThisUpdate) {
			t.Errorf("serial %x is dated %v, after the CRL's own %v", e.Serial, when, crl.ThisUpdate)
		}
	}
	if repeated {
		t.Error("a serial is still there more than once")
	}
}
