package catest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Signing is an authority that tells what it has signed.
type Signing interface {
	ca.Authority
	SignedNames(ctx context.Context) ([]string, error)
	Held(ctx context.Context, names []node.Certname) ([]ca.Held, error)
}

// RunSigned runs the suite of what an import asks of an authority, as Run does.
func RunSigned(t *testing.T, o Options, open func(t *testing.T) Signing) {
	for name, test := range map[string]func(*suite, Signing){
		"Held":            (*suite).held,
		"HeldGone":        (*suite).heldGone,
		"HeldRefuses":     (*suite).heldRefuses,
		"SignedCancelled": (*suite).signedCancelled,
	} {
		t.Run(name, func(t *testing.T) {
			authority := open(t)
			test(&suite{T: t, Options: o, Traits: authority.Traits(), ca: authority}, authority)
		})
	}
}

func (s *suite) held(a Signing) {
	var names []node.Certname
	want := map[node.Certname]ca.Held{}
	for range 20 {
		r := s.request(s.name(), ecKey(s.T))
		want[r.Certname] = ca.Held{Certificate: s.sign(r)}
		names = append(names, r.Certname)
	}
	names = append(names, s.name()) // has none
	listed, err := a.SignedNames(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	if !slices.IsSorted(listed) {
		s.Errorf("not in order: %q", listed)
	}
	held, err := a.Held(s.Context(), names)
	if err != nil || len(held) != len(names) {
		s.Fatalf("%d for %d names, %v", len(held), len(names), err)
	}
	for i, name := range names {
		cert := want[name].Certificate
		if _, found := slices.BinarySearch(listed, string(name)); found != (cert != nil) {
			s.Errorf("%s: listed: %v", name, found)
		}
		if held[i].Problem != nil || (held[i].Certificate == nil) != (cert == nil) || cert != nil && !held[i].Certificate.Equal(cert) {
			s.Errorf("%s: got %+v", name, held[i])
		}
	}
}

func (s *suite) heldGone(a Signing) {
	r := s.request(s.name(), ecKey(s.T))
	cert := s.sign(r)
	if _, err := a.Revoke(s.Context(), []ca.Target{{Serial: node.SerialOf(cert.SerialNumber), Certname: r.Certname}}); err != nil {
		s.Fatal(err)
	}
	held, err := a.Held(s.Context(), []node.Certname{r.Certname})
	if err != nil || held[0].Certificate != nil && !errors.Is(held[0].Problem, ca.ErrHeldRevoked) {
		s.Errorf("revoked, and yet %+v, %v", held, err)
	}
}

func (s *suite) heldRefuses(a Signing) {
	if held, err := a.Held(s.Context(), []node.Certname{"../ca_key"}); err == nil {
		s.Errorf("looked outside: %+v", held)
	}
}

func (s *suite) signedCancelled(a Signing) {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if _, err := a.SignedNames(ctx); !errors.Is(err, context.Canceled) {
		s.Errorf("listed: %v", err)
	}
	if _, err := a.Held(ctx, []node.Certname{s.name()}); !errors.Is(err, context.Canceled) {
		s.Errorf("looked: %v", err)
	}
}
