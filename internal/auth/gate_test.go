package auth

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/test/testbed"
)

// refusals keeps the lines of refused calls, with their outcome.
type refusals []node.AuditLine

func (r *refusals) Refuse(l node.AuditLine, outcome string) {
	l.Outcome = outcome
	*r = append(*r, l)
}

const (
	list      = "espm.v1.NodeService/ListNodes"
	provision = "espm.v1.NodeService/ProvisionNode"
	backup    = "espm.v1.BackupService/CreateBackup"
)

// gateRig is a gate with every kind of peer.
type gateRig struct {
	*Gate
	*site
	refused refusals
	serials map[string]bool // that the function of the gate refuses
}

func newGateRig(t *testing.T) *gateRig {
	t.Helper()
	r := &gateRig{site: newSite(t), serials: map[string]bool{}}
	r.Gate = r.open(t)
	o := r.o
	o.Refusals, o.Limits = &r.refused, NewLimits(o.Now)
	o.Tokens = tokensOf(t, newRecords(), o.Now)
	o.Refused = func(cert, issuer *x509.Certificate) error {
		if r.serials[cert.SerialNumber.String()] {
			return errors.New("there is an order to revoke it")
		}
		return o.Trust.Refused(cert, issuer)
	}
	var err error
	if o.Principals, err = NewPrincipals([]Principal{
		{Certname: "web1.test", Role: node.Provisioner, Grant: node.Grant{OpenProvisions: 1, RequestsPerSecond: 5}},
	}); err != nil {
		t.Fatal(err)
	}
	if o.Local, err = NewLocal(""); err != nil {
		t.Fatal(err)
	}
	r.Gate = NewGate(o)
	return r
}

// local is a peer on a local socket: this process.
func (r *gateRig) local(t *testing.T) *Peer {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(testbed.Dir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p, err := r.LocalPeer(conn.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// on is a peer on the network that shows certificates.
func (r *gateRig) on(shown ...*testCA) *Peer {
	var certs []*x509.Certificate
	for _, one := range shown {
		certs = append(certs, one.cert)
	}
	return r.NetworkPeer("192.0.2.1:5", certs)
}

// Every kind of peer and of call: who is let in as whom, what the refused are told, and what
// the audit log and the log have of them.
func TestGate(t *testing.T) {
	r := newGateRig(t)
	secret := create(t, r.o.Tokens, "ci")
	reader, forged := []string{"Bearer " + string(secret.Bytes())}, []string{"bearer espm_" + strings.Repeat("A", 43)}
	for name, c := range map[string]struct {
		Request
		as      string // "" : nobody that is known
		err     error  // what is told
		audited node.Action
		log     string
	}{
		"local":                       {Request{Peer: r.local(t), Method: backup}, "local:", nil, "", ""},
		"local with a token":          {Request{Peer: r.local(t), Method: list, Authorization: reader}, "token:ci", nil, "", ""},
		"local with a forged token":   {Request{Peer: r.local(t), Method: list, Authorization: forged}, "", node.ErrUnauthenticated, node.ActionRead, "none has that hash"},
		"certificate":                 {Request{Peer: r.on(r.client), Method: provision}, "certname:web1.test", nil, "", ""},
		"certificate, not permitted":  {Request{Peer: r.on(r.client), Method: backup}, "certname:web1.test", node.ErrNotPermitted, node.ActionBackup, "provisioner may not call"},
		"certificate, not listed":     {Request{Peer: r.on(r.server), Method: provision}, "certname:puppet.test", node.ErrNotPermitted, node.ActionProvision, "certname:puppet.test"},
		"certificate of another CA":   {Request{Peer: r.on(issue(t, nil, "web1.test", nil)), Method: list}, "", node.ErrUnauthenticated, node.ActionRead, "unknown authority"},
		"it with a token":             {Request{Peer: r.on(issue(t, nil, "web1.test", nil)), Method: list, Authorization: reader}, "", node.ErrUnauthenticated, node.ActionRead, "unknown authority"},
		"certificate, then a token":   {Request{Peer: r.on(r.client), Method: provision, Authorization: reader}, "token:ci", node.ErrNotPermitted, node.ActionProvision, "reader may not call"},
		"nothing":                     {Request{Peer: r.on(), Method: provision}, "", node.ErrUnauthenticated, node.ActionProvision, "neither a token nor a certificate"},
		"token":                       {Request{Peer: r.on(), Method: list, Authorization: reader}, "token:ci", nil, "", ""},
		"two tokens":                  {Request{Peer: r.on(), Method: list, Authorization: append(forged, reader...)}, "", node.ErrUnauthenticated, node.ActionRead, "not one bearer token"},
		"another scheme":              {Request{Peer: r.on(), Method: list, Authorization: []string{"Basic eDp5"}}, "", node.ErrUnauthenticated, node.ActionRead, "not one bearer token"},
		"beside the gate":             {Request{Method: list, Authorization: reader}, "", node.ErrUnauthenticated, node.ActionRead, "not set up by espm"},
		"method not in the table":     {Request{Peer: r.local(t), Method: "x/Y"}, "local:", node.ErrNotPermitted, node.ActionRead, "may not call x/Y"},
		"method that is not served":   {Request{Peer: r.local(t), Method: "x/Y", Unserved: true}, "local:", nil, "", ""},
		"such a method to a stranger": {Request{Peer: r.on(), Method: "x/Y", Unserved: true}, "", node.ErrUnauthenticated, node.ActionRead, "neither a token"},
	} {
		t.Run(name, func(t *testing.T) {
			r.refused = nil
			r.log.Reset()
			a, err := r.Admit(c.Request)
			if !errors.Is(err, c.err) || errors.Is(c.err, node.ErrUnauthenticated) && err != node.ErrUnauthenticated { //nolint:errorlint // nothing else is told
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if c.err == nil {
				if got := a.Caller(); !strings.HasPrefix(got.Name, c.as) || got.Method != c.Method || got.Peer == "" || a.Valid() != nil || len(r.refused) > 0 || r.log.Len() > 0 {
					t.Errorf("got %+v, audited %v, log %s", got, r.refused, &r.log)
				}
				return
			}
			if a != nil || len(r.refused) != 1 {
				t.Fatalf("got %v, audited %v", a, r.refused)
			}
			l := r.refused[0]
			if l.Action != c.audited || l.Outcome != node.ErrorReason(c.err) || l.Method != c.Method || !strings.HasPrefix(l.Principal, c.as) || (l.Principal == "") != (c.as == "") {
				t.Errorf("audited as %+v", l)
			}
			if !strings.Contains(r.log.String(), c.log) || strings.Contains(r.log.String(), "espm_") {
				t.Errorf("log: %s", &r.log)
			}
		})
	}
}

// An admission is for one method, and holds as long as what the caller showed.
func TestAdmissionEnds(t *testing.T) {
	r := newGateRig(t)
	secret := create(t, r.o.Tokens, "ci")
	byToken, err := r.Admit(Request{Peer: r.on(), Method: list, Authorization: []string{"Bearer " + string(secret.Bytes())}})
	if err != nil {
		t.Fatal(err)
	}
	peer := r.on(r.client)
	byCertificate, err := r.Admit(Request{Peer: peer, Method: list})
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*Admission{"none": nil, "empty": {}, "of another method": byToken, "of another role": {caller: node.Caller{Method: provision, Role: "x"}}} {
		if _, err := r.Begin(a, provision); !errors.Is(err, node.ErrNotPermitted) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := errors.Join(byToken.Valid(), byCertificate.Valid()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.o.Tokens.Revoke(node.AsSelf(t.Context()), "ci"); err != nil {
		t.Fatal(err)
	}
	r.serials[r.client.cert.SerialNumber.String()] = true
	for name, a := range map[string]*Admission{"token": byToken, "certificate": byCertificate} {
		if err := a.Valid(); !errors.Is(err, node.ErrUnauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := peer.Check(); err == nil || !strings.Contains(err.Error(), "there is an order to revoke it") {
		t.Errorf("got %v", err)
	}
}

// A change of the principals holds for the next call, and ends what is admitted by the old ones.
func TestPrincipalsChange(t *testing.T) {
	r := newGateRig(t)
	secret := create(t, r.o.Tokens, "ci")
	peer := r.on(r.client)
	admit := func() *Admission {
		t.Helper()
		a, err := r.Admit(Request{Peer: peer, Method: list})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	before := admit()
	byToken, err := r.Admit(Request{Peer: peer, Method: list, Authorization: []string{"Bearer " + string(secret.Bytes())}})
	if err != nil {
		t.Fatal(err)
	}
	change := func(list ...Principal) {
		t.Helper()
		p, err := NewPrincipals(list)
		if err != nil {
			t.Fatal(err)
		}
		r.SetPrincipals(p)
	}
	same := Principal{Certname: "web1.test", Role: node.Provisioner, Grant: node.Grant{OpenProvisions: 1, RequestsPerSecond: 5}}
	change(same, Principal{Certname: "other.test", Role: node.Admin})
	if err := errors.Join(before.Valid(), peer.CheckPrincipal()); err != nil {
		t.Error("a change of another principal: ", err)
	}
	narrow := same
	narrow.Grant.Names = []string{}
	change(narrow)
	if err := before.Valid(); !errors.Is(err, node.ErrUnauthenticated) || !errors.Is(peer.CheckPrincipal(), errPrincipalChanged) {
		t.Errorf("a change of the grant: %v", err)
	}
	if after := admit(); after.Valid() != nil || after.Caller().Grant.Names == nil {
		t.Errorf("the next call: %+v", after.Caller())
	}
	change()
	if _, err := r.Admit(Request{Peer: peer, Method: list}); !errors.Is(err, node.ErrNotPermitted) {
		t.Errorf("got %v", err)
	}
	if err := byToken.Valid(); err != nil {
		t.Errorf("a token does not go by the principals: %v", err)
	}
}

// Nobody who was not told which serial numbers are refused lets a certificate in.
func TestGateWithoutRefused(t *testing.T) {
	r := newGateRig(t)
	o := r.o
	o.Refused = nil
	if err := NewGate(o).check(r.client); err == nil || !strings.Contains(err.Error(), "no list of refused serial numbers") {
		t.Errorf("got %v", err)
	}
	o.Trust = nil
	if err := NewGate(o).check(r.client); err == nil || NewGate(o).TLS() != nil {
		t.Errorf("got %v", err)
	}
}

// The gate counts requests, and provisions that are under way.
func TestGateCounts(t *testing.T) {
	r := newGateRig(t)
	var first *Admission
	for i := range 6 {
		a, err := r.Admit(Request{Peer: r.on(r.client), Method: provision})
		if first == nil {
			first = a
		}
		if (err == nil) != (i < 5) || i == 5 && (!errors.Is(err, node.ErrRateLimited) || len(r.refused) != 1 || r.refused[0].Outcome != "RATE_LIMITED") {
			t.Errorf("request %d: %v, audited %v", i, err, r.refused)
		}
	}
	done, err := r.Begin(first, provision)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Begin(first, provision); !errors.Is(err, node.ErrOpenProvisions) {
		t.Errorf("got %v", err)
	}
	done()
	if _, err := r.Begin(first, provision); err != nil {
		t.Error(err)
	}
}

// Of a read only refusals are audited, of a change every failure.
func TestFailed(t *testing.T) {
	r := newGateRig(t)
	for method, want := range map[string]int{list: 1, provision: 2} {
		r.refused = nil
		for _, err := range []error{node.ErrNodeNotFound, node.NotPermitted("node", "is another's")} {
			about := func(l *node.AuditLine) { l.Certname = "a.test" }
			if told := r.Failed(Failure{Caller: node.Caller{Name: "token:ci"}, Method: method, Err: err, Outcome: node.ErrorReason(err), About: about}); !errors.Is(told, err) {
				t.Errorf("got %v", told)
			}
		}
		if len(r.refused) != want || r.refused[0].Certname != "a.test" || r.refused[want-1].Outcome != node.ReasonNotPermitted {
			t.Errorf("%s: %v", method, r.refused)
		}
	}
}

// Run reads what has changed, by itself and in the background.
func TestTrustRuns(t *testing.T) {
	s := newSite(t)
	gate := s.open(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { gate.o.Trust.Run(ctx); close(ended) }()
	s.write(t, s.CRL, s.sub.crl(t, nil, s.client), s.root.crl(t, nil))
	for deadline := time.Now().Add(time.Minute); gate.check(s.client) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the changed CRL is not read")
		}
	}
	stop()
	<-ended
}
