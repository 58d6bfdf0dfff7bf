package puppetserver

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// names is the part of Puppet Server's API that takes a name, as 7.9 answers
// (certificate_authority_core.clj): what stands in signed/ and requests/, and
// revocations by that. noClean is its answer to /clean, as before 6.14.
type names struct {
	stub    *stub
	noClean int

	mu        sync.Mutex
	signed    map[string][]byte // PEM
	serials   map[string]node.Serial
	requests  map[string][]byte // PEM
	answer    map[string]int    // "METHOD /path" that fails: with what
	autosigns bool
	version   string // "": the server does not tell
}

func newNames(t *testing.T) *names {
	s := newStub(t)
	n := &names{stub: s, noClean: http.StatusNotFound, signed: map[string][]byte{}, serials: map[string]node.Serial{},
		requests: map[string][]byte{}, answer: map[string]int{}}
	s.names = n.serve
	return n
}

func (n *names) serve(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if code, fails := n.answer[r.Method+" "+r.URL.Path]; fails {
		http.Error(w, "made by the test", code)
		return
	}
	if r.URL.Path == "/status/v1/services" && n.version != "" {
		fmt.Fprintf(w, `{"ca":{"service_version":%q}}`, n.version)
		return
	}
	kind, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, apiPath), "/")
	body, _ := io.ReadAll(r.Body)
	switch r.Method + " " + kind {
	case "GET certificate":
		give(w, n.signed[name])
	case "GET certificate_request":
		give(w, n.requests[name])
	case "PUT certificate_request":
		n.requests[name] = body
		if n.autosigns {
			n.sign(r, name, 0)
		}
	case "PUT certificate_status":
		n.setStatus(w, r, name, body)
	case "DELETE certificate_status":
		if n.signed[name] == nil && n.requests[name] == nil {
			http.NotFound(w, r)
			return
		}
		delete(n.signed, name)
		delete(n.requests, name)
		w.WriteHeader(http.StatusNoContent)
	case "PUT clean":
		http.Error(w, "none", n.noClean)
	default:
		http.NotFound(w, r)
	}
}

func (n *names) setStatus(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	var want struct {
		State string `json:"desired_state"`
		TTL   int64  `json:"cert_ttl"`
	}
	_ = json.Unmarshal(body, &want)
	switch {
	case want.State == "signed" && n.requests[name] != nil:
		n.sign(r, name, time.Duration(want.TTL)*time.Second)
	case want.State == "revoked" && n.signed[name] != nil:
		_, _ = n.stub.directory.Revoke(r.Context(), []ca.Target{{Serial: n.serials[name], Certname: node.Certname(name)}})
		n.stub.mtime = n.stub.now
	case n.signed[name] == nil && n.requests[name] == nil:
		http.NotFound(w, r)
		return
	default:
		http.Error(w, "Cannot "+want.State, http.StatusConflict)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// sign is the server's; ttl 0: of its own choice, an hour. The directory's CA signs for a minute at least.
func (n *names) sign(r *http.Request, name string, ttl time.Duration) {
	block, _ := pem.Decode(n.requests[name])
	csr, err := ca.ParseCSR(pem.EncodeToMemory(block), node.Certname(name))
	if err != nil {
		panic(err)
	}
	if ttl == 0 {
		ttl = time.Hour
	}
	ttl = max(ttl, ca.MinTTL)
	serial := n.stub.directory.NewSerial()
	cert, err := n.stub.directory.Sign(r.Context(), ca.Request{Certname: node.Certname(name), Serial: serial, CSR: csr, TTL: ttl})
	if err != nil {
		panic(err)
	}
	n.signed[name] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	n.serials[name] = node.SerialOf(cert.SerialNumber)
	delete(n.requests, name)
}

func give(w http.ResponseWriter, text []byte) {
	if text == nil {
		http.Error(w, "Could not find it", http.StatusNotFound)
		return
	}
	_, _ = w.Write(text)
}

func request(t *testing.T, name node.Certname, ttl time.Duration) ca.Request {
	t.Helper()
	key, err := ca.GenerateKey(ca.ECP256)
	check(t, err)
	return ca.Request{Certname: name, Key: key, TTL: ttl}
}

func targets(t *testing.T, a *Authority, certnames ...node.Certname) []ca.Target {
	t.Helper()
	var out []ca.Target
	for _, name := range certnames {
		cert, err := a.Sign(t.Context(), request(t, name, time.Hour))
		check(t, err)
		out = append(out, ca.Target{Serial: node.SerialOf(cert.SerialNumber), Certname: name})
	}
	return out
}

// A server without /clean gets one revocation after the other. A name is
// freed when the CRL lists its certificate, unless a request stands beside it.
func TestRevokeWithoutClean(t *testing.T) {
	for _, code := range []int{http.StatusNotFound, http.StatusMethodNotAllowed} {
		n := newNames(t)
		n.noClean = code
		a := n.stub.open(t)
		all := targets(t, a, "a.test", "b.test", "c.test")
		n.requests["b.test"] = []byte("another's")
		n.stub.took()
		receipts, err := a.Revoke(t.Context(), all)
		check(t, err)
		for i, target := range all {
			if receipts[i].Serial != target.Serial || receipts[i].CRLNumber == "" {
				t.Errorf("%d: receipt %+v for %s", code, receipts[i], target.Serial)
			}
		}
		if n.signed["a.test"] != nil || n.signed["c.test"] != nil || n.signed["b.test"] == nil || n.requests["b.test"] == nil {
			t.Errorf("%d: left are %q beside the requests %q", code, n.signed, n.requests)
		}
		calls := n.stub.took()
		if first := slices.Index(calls, "DELETE "+statusPath("a.test")); first < slices.Index(calls, "PUT "+statusPath("c.test")) {
			t.Errorf("%d: deleted before the CRL could tell: %q", code, calls)
		}
	}
}

// Nothing is deleted that is not on the CRL: a certificate whose file
// is gone can't be revoked by name any more.
func TestRevokeWithoutCleanDeletesNothingAlive(t *testing.T) {
	n := newNames(t)
	a := n.stub.open(t)
	all := targets(t, a, "a.test", "bad.test", "c.test")
	n.answer["PUT "+statusPath("bad.test")] = http.StatusInternalServerError
	receipts, err := a.Revoke(t.Context(), all)
	if err == nil || errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "bad.test") || !strings.Contains(err.Error(), "made by the test") {
		t.Errorf("got %v", err)
	}
	if receipts[0].Serial == "" || receipts[1].Serial != "" || receipts[2].Serial == "" || n.signed["bad.test"] == nil {
		t.Errorf("receipts %+v, left are %q", receipts, n.signed)
	}
	delete(n.answer, "PUT "+statusPath("bad.test"))

	// Gone meanwhile, by another's hand: the CRL is what tells.
	n.answer["PUT "+statusPath("bad.test")] = http.StatusNotFound
	if _, err := a.Revoke(t.Context(), all[1:2]); err == nil || n.signed["bad.test"] == nil {
		t.Errorf("a receipt for what the CRL does not list: %v", err)
	}
	delete(n.answer, "PUT "+statusPath("bad.test"))

	n.answer["PUT "+statusPath("bad.test")] = http.StatusForbidden
	if _, err := a.Revoke(t.Context(), all[1:2]); !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "auth.conf") {
		t.Errorf("forbidden: %v", err)
	}
}

// The answer of a server that is just starting is not remembered for good.
func TestCleanIsTriedAgain(t *testing.T) {
	n := newNames(t)
	a := n.stub.open(t)
	all := targets(t, a, "a.test", "b.test")
	for i := range all {
		n.stub.took()
		_, err := a.Revoke(t.Context(), all[i:i+1])
		check(t, err)
		if !slices.Contains(n.stub.took(), "PUT "+apiPath+"clean") {
			t.Errorf("revocation %d: /clean was not tried", i)
		}
	}
}
