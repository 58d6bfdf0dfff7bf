package catest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Signing is an authority that lists the certificates that it has issued.
type Signing interface {
	ca.Authority
	SignedNames(ctx context.Context) ([]string, error)
	Existing(ctx context.Context, names []node.Certname) ([]ca.Existing, error)
}

// RunSigned runs the suite of the methods that an import needs. See Run.
func RunSigned(t *testing.T, o Options, open func(t *testing.T) Signing) {
	for name, test := range map[string]func(*suite, Signing){
		"Existing":        (*suite).existing,
		"ExistingRevoked": (*suite).existingRevoked,
		"ExistingRefuses": (*suite).existingRefuses,
		"SignedCancelled": (*suite).signedCancelled,
	} {
		t.Run(name, func(t *testing.T) {
			authority := open(t)
			test(&suite{T: t, Options: o, Traits: authority.Traits(), ca: authority}, authority)
		})
	}
}

func (s *suite) existing(a Signing) {
	var names []node.Certname
	want := map[node.Certname]ca.Existing{}
	for range 20 {
		r := s.request(s.name(), ecKey(s.T))
		want[r.Certname] = ca.Existing{Certificate: s.sign(r)}
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
	existing, err := a.Existing(s.Context(), names)
	if err != nil || len(existing) != len(names) {
		s.Fatalf("%d for %d names, %v", len(existing), len(names), err)
	}
	for i, name := range names {
		cert := want[name].Certificate
		if _, found := slices.BinarySearch(listed, string(name)); found != (cert != nil) {
			s.Errorf("%s: listed: %v", name, found)
		}
		if existing[i].Problem != nil || (existing[i].Certificate == nil) != (cert == nil) || cert != nil && !existing[i].Certificate.Equal(cert) {
			s.Errorf("%s: got %+v", name, existing[i])
		}
	}
}

func (s *suite) existingRevoked(a Signing) {
	r := s.request(s.name(), ecKey(s.T))
	cert := s.sign(r)
	if _, err := a.Revoke(s.Context(), []ca.Target{{Serial: node.SerialOf(cert.SerialNumber), Certname: r.Certname}}); err != nil {
		s.Fatal(err)
	}
	existing, err := a.Existing(s.Context(), []node.Certname{r.Certname})
	if err != nil || existing[0].Certificate != nil && !errors.Is(existing[0].Problem, ca.ErrExistingRevoked) {
		s.Errorf("revoked, and yet %+v, %v", existing, err)
	}
}

func (s *suite) existingRefuses(a Signing) {
	if existing, err := a.Existing(s.Context(), []node.Certname{"../ca_key"}); err == nil {
		s.Errorf("read a file outside of signed/: %+v", existing)
	}
}

func (s *suite) signedCancelled(a Signing) {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if _, err := a.SignedNames(ctx); !errors.Is(err, context.Canceled) {
		s.Errorf("SignedNames: %v", err)
	}
	if _, err := a.Existing(ctx, []node.Certname{s.name()}); !errors.Is(err, context.Canceled) {
		s.Errorf("Existing: %v", err)
	}
}
