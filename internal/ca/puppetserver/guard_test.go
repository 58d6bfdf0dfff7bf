package puppetserver

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
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

func (s *stub) sign(t *testing.T, a *Authority, name node.Certname) []string {
	t.Helper()
	_, err := a.Sign(t.Context(), issueRequest(t, name))
	check(t, err)
	return s.took()
}

// looked says whether the name was looked at before anything was sent.
func looked(calls []string) bool { return strings.HasPrefix(calls[0], "GET") }

// unlooked signs until a CSR is sent without a look, and returns the calls: a
// connection that nobody waits for any more may still be made for a while. It
// gives up after as many connections as there can be.
func (s *stub) unlooked(t *testing.T, a *Authority, prefix string) (calls []string) {
	t.Helper()
	for i := range 20 {
		if calls = s.sign(t, a, node.Certname(fmt.Sprintf("%s%d.test", prefix, i))); !looked(calls) {
			return calls
		}
	}
	t.Fatalf("every name is looked at: %q", calls)
	return nil
}

// A server that refuses what is taken is sent a CSR without a look: no more
// calls than by hand.
func TestAGuardedServerIsNotAskedFirst(t *testing.T) {
	s := newSigningStub(t)
	a := s.open(t)
	_, err := a.Trust(t.Context())
	check(t, err)
	s.took()
	check(t, a.CheckForm(t.Context(), issueRequest(t, "web1.test")))
	if first := s.sign(t, a, "web1.test"); !looked(first) {
		t.Fatalf("the first CSR was sent blindly: %q", first)
	}
	if calls := s.unlooked(t, a, "quick"); len(calls) != 3 {
		t.Errorf("calls %q, want that submit, sign and fetch are all", calls)
	}
	csr := s.foreign(t, "web2.test")
	if _, err := a.Sign(t.Context(), issueRequest(t, "web2.test")); !errors.Is(err, node.ErrForeignRequest) || looked(s.took()) {
		t.Errorf("with a request under the name: %v", err)
	}
	s.unlooked(t, a, "again")
	if _, err := a.Sign(t.Context(), issueRequest(t, "web1.test")); !errors.Is(err, node.ErrForeignCertificate) || looked(s.took()) {
		t.Errorf("with a certificate under the name: %v", err)
	}
	if !bytes.Equal(s.signing.requests["web2.test"], csr) {
		t.Error("the foreign request was replaced")
	}
}

// A server that lets a CSR take a name is looked at every time; so is one that
// comes back as such, before it is sent anything.
func TestADuplicateIsNeverSentToAServerThatTakesIt(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		s := newSigningStub(t)
		a := s.open(t)
		if restarted {
			s.unlooked(t, a, "quick")
			s.server.CloseClientConnections()
		}
		s.set(func() { s.signing.allowDuplicates = true })
		csr := s.foreign(t, "web1.test")
		for i := range 5 {
			if _, err := a.Sign(t.Context(), issueRequest(t, "web1.test")); !errors.Is(err, node.ErrForeignRequest) {
				t.Errorf("restarted %v: with a request under the name: %v", restarted, err)
			}
			if calls := s.took(); strings.Contains(strings.Join(calls, " "), "PUT") || !bytes.Equal(s.signing.requests["web1.test"], csr) {
				t.Fatalf("restarted %v: the foreign request was replaced: %q", restarted, calls)
			}
			if calls := s.sign(t, a, node.Certname(fmt.Sprintf("other%d.test", i))); !looked(calls) {
				t.Errorf("restarted %v: calls %q", restarted, calls)
			}
		}
	}
}

// Many at once need more connections than there are: those look first.
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

// A CSR that waits for its answer keeps nothing else from a new connection.
func TestASlowCSRHoldsUpNothingElse(t *testing.T) {
	s := newSigningStub(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	s.front(func(w http.ResponseWriter, q *http.Request, next http.HandlerFunc) {
		if q.Method == http.MethodPut && strings.HasSuffix(q.URL.Path, "certificate_request/slow.test") {
			close(arrived)
			<-release
		}
		next(w, q)
	})
	a := s.open(t)
	s.unlooked(t, a, "quick")
	signed := make(chan error, 1)
	slow := issueRequest(t, "slow.test")
	go func() {
		_, err := a.Sign(t.Context(), slow)
		signed <- err
	}()
	<-arrived
	a.credentials.transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := a.look(ctx, "other.test", ""); err != nil {
		t.Errorf("while a CSR is under way: %v", err)
	}
	close(release)
	check(t, <-signed)
}

// A connection that is begun before and comes after what is learnt may be to another server.
func TestAConnectionUnderWayEndsWhatIsLearntMeanwhile(t *testing.T) {
	var g guard
	begun, gate := make(chan struct{}), make(chan struct{})
	d := g.dialer(func(context.Context, string, string) (net.Conn, error) {
		close(begun)
		<-gate
		return nil, nil
	})
	done := make(chan struct{})
	go func() {
		_, _ = d(t.Context(), "", "")
		close(done)
	}()
	<-begun
	g.learnt.Store(g.dials.Load())
	close(gate)
	<-done
	if _, ok := g.enter(t.Context()); ok {
		t.Error("a connection made after what was learnt counts as one from before")
	}
}
