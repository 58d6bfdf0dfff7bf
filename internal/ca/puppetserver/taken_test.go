package puppetserver

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
)

// signing is what process-csr-submission! and sign-existing-csr! of 7.9 and
// 8.7 do. The stub's lock guards it.
type signing struct {
	directory       *directory.Authority
	allowDuplicates bool
	requests        map[string][]byte
	certificates    map[string][]byte
}

func newSigningStub(t *testing.T) *stub {
	s := newStub(t)
	s.signing = &signing{directory: s.directory, requests: map[string][]byte{}, certificates: map[string][]byte{}}
	s.names = s.signing.serve
	return s
}

func (s *signing) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, apiPath), "/")
	name := parts[1]
	held := map[string]map[string][]byte{"certificate": s.certificates, "certificate_request": s.requests}[parts[0]]
	switch {
	case r.Method == http.MethodGet && held[name] != nil:
		_, _ = w.Write(held[name])
	case r.Method == http.MethodPut && parts[0] == "certificate_request":
		s.submit(w, r, name)
	case r.Method == http.MethodPut && s.requests[name] != nil:
		block, _ := pem.Decode(s.requests[name])
		csr, _ := x509.ParseCertificateRequest(block.Bytes)
		cert, err := s.directory.Sign(r.Context(), ca.Request{Certname: node.Certname(name), Serial: s.directory.NewSerial(), CSR: csr, TTL: time.Hour})
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		s.certificates[name] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
		delete(s.requests, name)
		w.WriteHeader(http.StatusNoContent)
	default:
		http.NotFound(w, r)
	}
}

func (s *signing) submit(w http.ResponseWriter, r *http.Request, name string) {
	body, _ := io.ReadAll(r.Body)
	block, _ := pem.Decode(body)
	csr, _ := x509.ParseCertificateRequest(block.Bytes)
	subject := csr.Subject.CommonName
	switch taken := s.requests[subject] != nil || s.certificates[subject] != nil; {
	case taken && !s.allowDuplicates:
		http.Error(w, subject+" already has a requested certificate; ignoring certificate request", http.StatusBadRequest)
	case subject != name:
		http.Error(w, "Instance name \""+subject+"\" does not match requested key \""+name+"\"", http.StatusBadRequest)
	default:
		s.requests[name] = body
	}
}

func issueRequest(t *testing.T, name node.Certname) ca.Request {
	t.Helper()
	key, err := ca.GenerateKey(ca.ECP256)
	check(t, err)
	return ca.Request{Certname: name, Key: key, TTL: time.Hour}
}

// foreign leaves another's CSR under a name.
func (s *stub) foreign(t *testing.T, name node.Certname) []byte {
	t.Helper()
	csr, err := makeCSR(issueRequest(t, name))
	check(t, err)
	s.set(func() { s.signing.requests[string(name)] = csr })
	return csr
}

// sign signs for a name and forgets the calls of it.
func (s *stub) sign(t *testing.T, a *Authority, name node.Certname) {
	t.Helper()
	_, err := a.Sign(t.Context(), issueRequest(t, name))
	check(t, err)
	s.took()
}

// A name is checked before the CSR is sent: a certificate or a request of another key stays, even
// on a server that would replace it (allow-duplicate-certs).
func TestATakenNameIsNeverSentACSR(t *testing.T) {
	for _, allow := range []bool{false, true} {
		s := newSigningStub(t)
		s.signing.allowDuplicates = allow
		a := s.open(t)
		s.sign(t, a, "web1.test")
		csr := s.foreign(t, "web2.test")
		for name, want := range map[node.Certname]error{"web1.test": node.ErrForeignCertificate, "web2.test": node.ErrForeignRequest} {
			if _, err := a.Sign(t.Context(), issueRequest(t, name)); !errors.Is(err, want) {
				t.Errorf("duplicates %v: %s: %v, want %v", allow, name, err, want)
			}
		}
		if calls := strings.Join(s.took(), " "); strings.Contains(calls, "PUT") || !bytes.Equal(s.signing.requests["web2.test"], csr) {
			t.Errorf("duplicates %v: the request was replaced: %q", allow, calls)
		}
	}
}

// A request that arrives between the check of the name and the CSR is not replaced, as the server refuses
// the CSR. The error names the request.
func TestARequestThatArrivesMeanwhileStays(t *testing.T) {
	s := newSigningStub(t)
	theirs, err := makeCSR(issueRequest(t, "web1.test"))
	check(t, err)
	s.front(func(w http.ResponseWriter, q *http.Request, next http.HandlerFunc) {
		if q.Method == http.MethodPut && strings.HasSuffix(q.URL.Path, "certificate_request/web1.test") {
			s.set(func() { s.signing.requests["web1.test"] = theirs })
		}
		next(w, q)
	})
	if _, err := s.open(t).Sign(t.Context(), issueRequest(t, "web1.test")); !errors.Is(err, node.ErrForeignRequest) {
		t.Errorf("got %v, want that the request is another's", err)
	}
	if !bytes.Equal(s.signing.requests["web1.test"], theirs) {
		t.Error("the request was replaced")
	}
}

func TestManySignAtOnce(t *testing.T) {
	s := newSigningStub(t)
	a := s.open(t)
	var wg sync.WaitGroup
	for _, worker := range []string{"a", "b", "c", "d"} {
		wg.Go(func() {
			for _, i := range []string{"1", "2", "3", "4", "5"} {
				if _, err := a.Sign(t.Context(), issueRequest(t, node.Certname(worker+i+".test"))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(s.signing.certificates); n != 20 {
		t.Errorf("%d certificates, want 20", n)
	}
}
