package node

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"
)

var (
	stateBefore = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	stateNow    = stateBefore.Add(time.Hour)
)

// inState returns the registration "u1" of web1.test in a state, as it is stored.
func inState(s State) Node {
	n := Node{
		Certname: "web1.test", UID: "u1", State: s, Owner: "ops", Groups: []string{"g"}, Labels: map[string]string{"k": "v"},
		Classification: Classification{Parameters: map[string]any{"token": "secret"}, Sensitive: []string{"parameters[token]"}},
		CreatedAt:      stateBefore, UpdatedAt: stateBefore,
	}
	if s == Provisioned || s == Terminated {
		n.Serials = []Serial{"0A01"}
	}
	if s == Terminated {
		n.TerminatedAt = stateBefore
	}
	return n
}

// Every transition from every state: where it leads, or which error it is refused with.
func TestTransitions(t *testing.T) {
	type end struct {
		state   State
		serials []Serial
		same    bool // the registration is as it was
		err     error
	}
	var (
		registered  = end{state: Registered}
		issuing     = end{state: Issuing}
		provisioned = end{state: Provisioned, serials: []Serial{"0B02"}}
		terminated  = end{state: Terminated}
		refused     = func(err error) end { return end{err: err} }
	)
	cert := Certificate{Serial: "0B02", UID: "u1", NotBefore: stateBefore.Add(1), NotAfter: stateNow.Add(time.Hour)}
	own := Certificate{Serial: "0A01", UID: "u1", NotBefore: stateBefore, NotAfter: stateNow.Add(time.Hour)}
	certsOf := func(n Node) []Certificate {
		if len(n.Serials) == 0 {
			return nil
		}
		return []Certificate{own}
	}
	for _, row := range []struct {
		name string
		move func(Node) (Node, error)
		ends map[State]end
	}{
		{"BeginIssue", func(n Node) (Node, error) { return n.BeginIssue(stateNow) }, map[State]end{
			Registered: issuing, Issuing: refused(ErrIssuing), Provisioned: refused(ErrCertificateExists), Terminated: refused(ErrNodeNotFound),
		}},
		{"CancelIssue", func(n Node) (Node, error) { return n.CancelIssue(stateNow) }, map[State]end{
			Registered: refused(errNotIssuing), Issuing: registered, Provisioned: refused(errNotIssuing), Terminated: refused(errNotIssuing),
		}},
		{"Hold", func(n Node) (Node, error) { return n.Hold("0B02", stateNow) }, map[State]end{
			Registered: refused(errNotIssuing), Issuing: provisioned, Provisioned: refused(errNotIssuing), Terminated: refused(errNotIssuing),
		}},
		{"Adopt", func(n Node) (Node, error) { return n.Adopt([]Certificate{cert}, stateNow) }, map[State]end{
			Registered: provisioned, Issuing: refused(ErrIssuing), Provisioned: refused(ErrCertificateNotFound), Terminated: refused(ErrNodeNotFound),
		}},
		{"Adopt beside its own", func(n Node) (Node, error) { return n.Adopt([]Certificate{own, cert}, stateNow) }, map[State]end{
			Registered: {state: Provisioned, serials: []Serial{"0B02", "0A01"}}, Issuing: refused(ErrIssuing),
			Provisioned: {state: Provisioned, serials: []Serial{"0B02", "0A01"}}, Terminated: refused(ErrNodeNotFound),
		}},
		{"Restore", func(n Node) (Node, error) { return n.Restore(cert, certsOf(n), stateNow) }, map[State]end{
			Registered: provisioned, Issuing: refused(ErrIssuing), Provisioned: {state: Provisioned, serials: []Serial{"0B02", "0A01"}}, Terminated: refused(ErrNodeNotFound),
		}},
		{"Lose its own", func(n Node) (Node, error) { return n.Lose("0A01", stateNow) }, map[State]end{
			Registered: refused(ErrCertificateNotFound), Issuing: refused(ErrCertificateNotFound), Provisioned: registered, Terminated: refused(ErrCertificateNotFound),
		}},
		{"Lose all", func(n Node) (Node, error) { return n.LoseAll(stateNow) }, map[State]end{
			Registered: {state: Registered, same: true}, Issuing: {state: Issuing, same: true}, Provisioned: registered, Terminated: refused(ErrCertificateNotFound),
		}},
		{"Lose another", func(n Node) (Node, error) { return n.Lose("0B02", stateNow) }, map[State]end{
			Registered: refused(ErrCertificateNotFound), Issuing: refused(ErrCertificateNotFound), Provisioned: refused(ErrCertificateNotFound), Terminated: refused(ErrCertificateNotFound),
		}},
		{"Forget", func(n Node) (Node, error) { return n.Forget(stateNow) }, map[State]end{
			Registered: terminated, Issuing: refused(ErrIssuing), Provisioned: {state: Terminated, serials: []Serial{"0A01"}}, Terminated: refused(ErrNodeNotFound),
		}},
		{"Terminate", func(n Node) (Node, error) { return n.Terminate("", "", stateNow) }, map[State]end{
			Registered: terminated, Issuing: terminated, Provisioned: {state: Terminated, serials: []Serial{"0A01"}}, Terminated: refused(ErrNodeNotFound),
		}},
	} {
		for _, from := range []State{Registered, Issuing, Provisioned, Terminated} {
			t.Run(row.name+" of a "+string(from)+" one", func(t *testing.T) {
				want, ok := row.ends[from]
				if !ok {
					t.Fatal("the table does not say where it leads")
				}
				was := inState(from)
				got, err := row.move(was)
				if !reflect.DeepEqual(was, inState(from)) {
					t.Error("the registration that it began from is changed")
				}
				if want.err != nil {
					if !errors.Is(err, want.err) || !reflect.DeepEqual(got, was) {
						t.Fatalf("got %v (%s), want the error %v", err, got.State, want.err)
					}
					return
				}
				if want.same {
					if err != nil || !reflect.DeepEqual(got, was) {
						t.Fatalf("got %+v, %v, want it as it was", got, err)
					}
					return
				}
				if err != nil || got.State != want.state || !slices.Equal(got.Serials, want.serials) || !got.UpdatedAt.Equal(stateNow) {
					t.Fatalf("got %s with serials %q at %v, %v; want %s with %q at %v", got.State, got.Serials, got.UpdatedAt, err, want.state, want.serials, stateNow)
				}
				got.Labels["k"], got.Groups[0] = "changed", "changed"
				if was.Labels["k"] != "v" || was.Groups[0] != "g" {
					t.Error("the copy shares its labels or groups with what it began from")
				}
			})
		}
	}
}

func TestRegisterTakesOnlyTheSpec(t *testing.T) {
	spec := inState(Terminated)
	spec.Groups, spec.ClaimWithin, spec.ClaimedAt = []string{"z", "a"}, time.Hour, stateBefore
	spec.TerminatedFor, spec.RevokedFor, spec.Requests, spec.Revision = "late", "keyCompromise", []string{"r"}, 7
	want := Node{
		Certname: "web1.test", UID: "u2", State: Registered, Owner: "me", Groups: []string{"a", "z"}, Labels: spec.Labels,
		Classification: spec.Classification, CreatedAt: stateNow, UpdatedAt: stateNow,
		ClaimWithin: time.Hour, ClaimBy: stateNow.Add(time.Hour),
	}
	if got := Register(spec, "u2", "me", stateNow); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if spec.Groups[0] != "z" {
		t.Error("the caller's groups are sorted in place")
	}
}

// What Lose took, Restore gives back, and nothing else of the record differs.
func TestRestoreIsTheInverseOfLose(t *testing.T) {
	held := inState(Provisioned)
	held.Serials = []Serial{"0C03", "0B02", "0A01"}
	var certs []Certificate
	for i, serial := range held.Serials {
		certs = append(certs, Certificate{Serial: serial, UID: held.UID, NotBefore: stateBefore.Add(-time.Duration(i)), NotAfter: stateNow})
	}
	for i, cert := range certs {
		without, err := held.Lose(cert.Serial, stateBefore)
		if err != nil || without.Holds(cert.Serial) || without.State != Provisioned || len(without.Serials) != 2 {
			t.Fatalf("got %+v, %v", without, err)
		}
		others := slices.Delete(slices.Clone(certs), i, i+1)
		if back, err := without.Restore(cert, others, stateBefore); err != nil || !reflect.DeepEqual(back, held) {
			t.Errorf("got %+v, %v", back, err)
		}
	}
	cert := certs[0]
	without, err := held.LoseAll(stateBefore)
	if err != nil || without.State != Registered || without.Newest() != "" {
		t.Fatalf("got %+v, %v", without, err)
	}
	if _, err := without.Restore(cert, nil, stateNow.Add(1)); !errors.Is(err, ErrCertificateNotFound) {
		t.Errorf("of an expired certificate: %v", err)
	}
	cert.UID = "u0"
	if _, err := without.Restore(cert, nil, stateBefore); !errors.Is(err, ErrUIDMismatch) {
		t.Errorf("of an earlier registration's certificate: %v", err)
	}
}

func TestTombstoneSaysWhyAndKeepsNoSecret(t *testing.T) {
	gone, err := inState(Provisioned).Terminate("keyCompromise", "not claimed", stateNow)
	if err != nil || gone.RevokedFor != "keyCompromise" || gone.TerminatedFor != "not claimed" || !gone.TerminatedAt.Equal(stateNow) {
		t.Errorf("got %+v, %v", gone, err)
	}
	if gone.Classification.Parameters["token"] == "secret" {
		t.Error("the tombstone has the sensitive value")
	}
}
