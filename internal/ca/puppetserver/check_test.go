package puppetserver

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Check says what Sign would be refused for and changes nothing.
func TestCheck(t *testing.T) {
	n := newNames(t)
	a := n.stub.open(t)
	mine := request(t, "mine.test", time.Hour)
	signed, err := a.Sign(t.Context(), mine)
	check(t, err)
	revoked := request(t, "revoked.test", time.Hour)
	dead, err := a.Sign(t.Context(), revoked)
	check(t, err)
	n.answer["DELETE "+statusPath("revoked.test")] = 204 // so that it stands
	_, err = a.Revoke(t.Context(), []ca.Target{{Serial: node.SerialOf(dead.SerialNumber), Certname: "revoked.test"}})
	check(t, err)
	if n.signed["revoked.test"] == nil {
		t.Fatal("the revoked certificate does not stand")
	}
	made, err := makeCSR(request(t, "csr.test", 0))
	check(t, err)
	n.requests["csr.test"] = made
	csr, err := ca.ParseCSR(made, "csr.test")
	check(t, err)
	n.requests["garbage.test"] = []byte("garbage")
	n.signed["torn.test"] = []byte("torn")
	short := request(t, "short.test", 2*time.Minute)
	_, err = a.Sign(t.Context(), short)
	check(t, err)

	for name, c := range map[string]struct {
		request ca.Request
		want    error  // nil: none
		stands  string // the serial that is returned
		says    string
	}{
		"free":                        {request: ca.Request{Certname: "free.test"}},
		"free, with a key":            {request: request(t, "free.test", time.Hour)},
		"a certificate":               {request: ca.Request{Certname: "mine.test"}, stands: string(node.SerialOf(signed.SerialNumber))},
		"a certificate of its key":    {request: mine, stands: string(node.SerialOf(signed.SerialNumber))},
		"a revoked certificate":       {request: ca.Request{Certname: "revoked.test"}, want: node.ErrForeignCertificate, says: "which is revoked"},
		"a torn certificate":          {request: ca.Request{Certname: "torn.test"}, want: node.ErrForeignCertificate, says: "no certificate in PEM"},
		"a request":                   {request: ca.Request{Certname: "csr.test"}, want: node.ErrForeignRequest},
		"a request of its key":        {request: ca.Request{Certname: "csr.test", CSR: csr}},
		"a request that is none":      {request: ca.Request{Certname: "garbage.test"}, want: node.ErrForeignRequest},
		"a wrong name":                {request: ca.Request{Certname: "Upper.test"}, want: node.ErrInvalid},
		"a short life":                {request: ca.Request{Certname: "free.test", TTL: time.Second}, want: node.ErrInvalid},
		"a longer life than the CA's": {request: ca.Request{Certname: "free.test", TTL: ca.MaxTTL}, want: node.ErrInvalid},
	} {
		n.stub.took()
		cert, err := a.Check(t.Context(), c.request)
		serial := ""
		if cert != nil && err == nil {
			serial = string(node.SerialOf(cert.SerialNumber))
		}
		if !errors.Is(err, c.want) || c.want == nil && err != nil || serial != c.stands {
			t.Errorf("%s: got %q, %v, want %q, %v", name, serial, err, c.stands, c.want)
		}
		if err != nil && (!strings.HasPrefix(err.Error(), "check "+string(c.request.Certname)+": ") || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: says %q, want %q in it", name, err, c.says)
		}
		for _, call := range n.stub.took() {
			if !strings.HasPrefix(call, "GET ") {
				t.Errorf("%s: sent %s", name, call)
			}
		}
	}
	n.stub.advance(3 * time.Minute)
	if _, err := a.Check(t.Context(), ca.Request{Certname: "short.test"}); !errors.Is(err, node.ErrForeignCertificate) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired certificate: %v", err)
	}
	n.stub.set(func() { n.stub.down = true })
	if _, err := a.Check(t.Context(), ca.Request{Certname: "free.test"}); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("the server is down: %v", err)
	}
}

// A server that autosigns gives a life of its own: good where none was asked
// for, else refused with what to do; it is found afterwards, to be revoked.
func TestAutosign(t *testing.T) {
	n := newNames(t)
	n.autosigns = true
	a := n.stub.open(t)
	_, err := a.Sign(t.Context(), request(t, "any.test", 0))
	check(t, err)
	_, err = a.Sign(t.Context(), request(t, "same.test", time.Hour))
	check(t, err)
	other := request(t, "other.test", 2*time.Hour)
	if _, err := a.Sign(t.Context(), other); !errors.Is(err, node.ErrRefused) || !strings.Contains(err.Error(), "autosign") {
		t.Errorf("got %v, want that it is refused", err)
	}
	hash, err := ca.KeyHash(other.PublicKey())
	check(t, err)
	if found, err := a.Find(t.Context(), ca.Query{Certname: "other.test", KeyHash: hash}); err != nil || !found.Issued {
		t.Errorf("the certificate to revoke: %+v, %v", found, err)
	}
	n.autosigns = false
	got, err := a.Sign(t.Context(), request(t, "off.test", 2*time.Hour))
	check(t, err)
	if life := got.NotAfter.Sub(got.NotBefore); life < 2*time.Hour {
		t.Errorf("a life of %v", life)
	}
}
