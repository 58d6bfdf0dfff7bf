package puppetserver

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/catest"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
)

// library answers, on top of the stub, the two calls of an import.
type library struct {
	*stub
	strange map[string]int    // answers by path that stand in for the directory's
	kept    map[string][]byte // certificates that a revocation did not remove, by name
}

func newLibrary(t *testing.T) *library {
	l := &library{stub: newStub(t), strange: map[string]int{}, kept: map[string][]byte{}}
	l.names = l.serve
	return l
}

func (l *library) serve(w http.ResponseWriter, r *http.Request) {
	name, isCert := strings.CutPrefix(r.URL.Path, apiPath+"certificate/")
	switch code := l.strange[r.URL.Path]; {
	case code != 0:
		http.Error(w, "made by the test", code)
	case r.URL.Path == statusesPath:
		names, _ := l.directory.SignedNames(r.Context())
		type status struct {
			Name  string `json:"name"`
			State string `json:"state"`
		}
		list := []status{{"asked.test", "requested"}}
		for _, name := range slices.Backward(names) {
			list = append(list, status{name, "signed"})
		}
		_ = json.NewEncoder(w).Encode(list)
	case l.kept[name] != nil:
		_, _ = w.Write(l.kept[name])
	case isCert:
		existing, _ := l.directory.Existing(r.Context(), []node.Certname{node.Certname(name)})
		if existing == nil || existing[0].Certificate == nil {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: existing[0].Certificate.Raw}))
	default:
		http.NotFound(w, r)
	}
}

// looking signs and revokes as the directory, and looks at what the server tells.
type looking struct {
	*directory.Authority
	server *Authority
}

func (l looking) SignedNames(ctx context.Context) ([]string, error) { return l.server.SignedNames(ctx) }

func (l looking) Existing(ctx context.Context, names []node.Certname) ([]ca.Existing, error) {
	return l.server.Existing(ctx, names)
}

func TestSignedConformance(t *testing.T) {
	l := newLibrary(t)
	a := l.open(t)
	catest.RunSigned(t, catest.Options{}, func(t *testing.T) catest.Signing {
		return looking{l.directory, a}
	})
}

// The list leaves requests out; what is wrong with one name is said of that
// name, and what is wrong with the server fails the call.
func TestHeldTellsWhatIsWrong(t *testing.T) {
	l := newLibrary(t)
	a := l.open(t)
	for _, name := range []node.Certname{"good.test", "odd.test", "revoked.test"} {
		key, err := ca.GenerateKey(ca.ECP256)
		check(t, err)
		cert, err := l.directory.Sign(t.Context(), ca.Request{Certname: name, Serial: l.directory.NewSerial(), Key: key, TTL: 48 * time.Hour})
		check(t, err)
		if name == "revoked.test" {
			l.kept[string(name)] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
			_, err := l.directory.Revoke(t.Context(), []ca.Target{{Serial: node.SerialOf(cert.SerialNumber), Certname: name}})
			check(t, err)
		}
	}
	listed, err := a.SignedNames(t.Context())
	if want := []string{"good.test", "localhost", "odd.test"}; err != nil || !slices.Equal(listed, want) {
		t.Errorf("listed %q, %v, want %q", listed, err, want)
	}
	l.set(func() { l.strange[apiPath+"certificate/odd.test"] = http.StatusBadRequest })
	existing, err := a.Existing(t.Context(), []node.Certname{"good.test", "localhost", "odd.test", "revoked.test"})
	check(t, err)
	if !errors.Is(existing[3].Problem, ca.ErrExistingRevoked) {
		t.Errorf("revoked: %v", existing[3].Problem)
	}
	if existing[0].Problem != nil || existing[1].Problem == nil || !strings.Contains(existing[1].Problem.Error(), "espm's own client certificate") ||
		existing[2].Problem == nil || !strings.Contains(existing[2].Problem.Error(), "400 made by the test") {
		t.Errorf("got %v", existing)
	}
	l.set(func() { l.strange[apiPath+"certificate/odd.test"] = http.StatusInternalServerError }) // it can't read the file
	if again, err := a.Existing(t.Context(), []node.Certname{"good.test", "odd.test"}); err != nil || again[0].Problem != nil ||
		again[1].Problem == nil || !strings.Contains(again[1].Problem.Error(), "500 made by the test") {
		t.Errorf("got %v, %v", again, err)
	}
	if calls := l.took(); calls[len(calls)-1] != "GET "+crlPath+" conditional" {
		t.Errorf("the CRL is not asked for after the certificates: %q", calls)
	}
	l.set(func() { l.strange[apiPath+"certificate/odd.test"] = http.StatusServiceUnavailable })
	if existing, err := a.Existing(t.Context(), []node.Certname{"good.test", "odd.test"}); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("got %v, %v", existing, err)
	}
	l.set(func() { l.strange[statusesPath] = http.StatusInternalServerError })
	if _, err := a.SignedNames(t.Context()); !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "name the certnames to import") {
		t.Errorf("got %v", err)
	}
	l.set(func() { l.strange[statusesPath] = http.StatusForbidden })
	forbidden := (*ForbiddenError)(nil)
	if _, err := a.SignedNames(t.Context()); !errors.As(err, &forbidden) || !strings.Contains(forbidden.Rule, "certificate_status") {
		t.Errorf("got %v", err)
	}
}
