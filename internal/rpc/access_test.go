package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store/bolt"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func discard() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

func (r *rig) terminateAndWait(t *testing.T, name string) espmv1.RevocationState {
	t.Helper()
	resp, err := r.nodes.TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{Certname: name, Wait: durationpb.New(time.Minute)})
	if err != nil || len(resp.GetRevocations()) != 1 {
		t.Fatalf("%v, %v", resp, err)
	}
	return resp.GetRevocations()[0].GetState()
}

// ends has requests that end the streams which would go on; all others are sent an empty one.
var ends = map[string]proto.Message{
	"espm.v1.NodeService/WatchNodes":                &espmv1.WatchNodesRequest{AfterRevision: -1},
	"espm.v1.RevocationService/WatchRevocations":    &espmv1.WatchRevocationsRequest{AfterRevision: -1},
	"espm.v1.CertificateService/ImportCertificates": &espmv1.ImportCertificatesRequest{Certnames: []string{"UPPER"}},
}

// invoke calls a method whatever its types are, and returns the first answer's error.
func invoke(ctx context.Context, conn *grpc.ClientConn, method string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/"+method)
	if err != nil {
		return err
	}
	req, ok := ends[method]
	if !ok {
		req = &emptypb.Empty{}
	}
	if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(&emptypb.Empty{}); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// Every method of the server is in the table, and the table has no other.
func TestTheTableIsWhole(t *testing.T) {
	r := newRig(t)
	if have, want := slices.Sorted(maps.Keys(methods(r.grpc.Server))), auth.Methods(); !slices.Equal(have, want) {
		t.Errorf("the server has\n%q\nthe table\n%q", have, want)
	}
}

// Every method with every kind of caller: let in or refused as the table
// says, with nothing changed and nothing told.
func TestEveryMethodWithEveryCaller(t *testing.T) {
	n := newNetworkRig(t, DefaultLimits)
	callers := n.callers(t)
	var last int64
	n.fresh(t, &last)
	_, before, _ := strings.Cut(n.held(t), "\n")
	var refused int64
	texts := map[codes.Code]map[string]bool{codes.Unauthenticated: {}, codes.PermissionDenied: {}}
	for _, c := range callers { // once each, before there is more than the log takes
		if wasDenied(invoke(c.ctx, c.conn, "espm.v1.NodeService/ListNodes")) {
			refused++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(callers)) {
		c := callers[name]
		for _, method := range auth.Methods() {
			err := invoke(c.ctx, c.conn, method)
			if wasDenied(err) || err != nil && codeOf(err) != codes.Unavailable && auth.ActionOf(method) != node.ActionRead {
				refused++
			}
			allowed := c.role != "" && auth.Permits(method, node.Caller{Role: c.role, Local: name == "local"})
			switch got := codeOf(err); {
			case allowed && (got == codes.Unauthenticated || got == codes.PermissionDenied || got == codes.Unavailable || got == codes.Unimplemented):
				t.Errorf("%s: %s: %v, want it let in", name, method, err)
			case !allowed && c.role != "" && got != codes.PermissionDenied:
				t.Errorf("%s: %s: %v, want PERMISSION_DENIED", name, method, err)
			case c.role == "" && got != c.code:
				t.Errorf("%s: %s: %v, want %v", name, method, err, c.code)
			}
			if c.role == "" && c.code != codes.Unavailable {
				texts[c.code][status.Convert(err).Proto().String()] = true
			}
			if c.role == "" {
				for _, secret := range []string{"revoked", "expired", "authority", "token", "hash", "CRL"} {
					if strings.Contains(strings.ToLower(err.Error()), strings.ToLower(secret)) {
						t.Errorf("%s: %s: it is told %v", name, method, err)
					}
				}
			}
		}
	}
	for code, all := range texts {
		if len(all) != 1 {
			t.Errorf("%v has not one text but %q", code, slices.Collect(maps.Keys(all)))
		}
	}
	if _, after, _ := strings.Cut(n.held(t), "\n"); after != before {
		t.Error("the CA changed")
	}
	n.refusals(t, last, refused)
	n.conn.Close()
	n.grpc.Stop()
	for name, c := range callers {
		if !strings.Contains(n.log.String(), c.log) {
			t.Errorf("%s: the log has no %q", name, c.log)
		}
	}
	if strings.Contains(n.log.String(), "hunter2") || strings.Contains(n.log.String(), "espm_") {
		t.Error("a token is in the log")
	}
}

// What the server does not have is no matter of permission, but to strangers.
func TestUnknownMethod(t *testing.T) {
	n := newNetworkRig(t, DefaultLimits)
	if err := invoke(t.Context(), n.conn, "espm.v1.NodeService/Newer"); codeOf(err) != codes.Unimplemented {
		t.Errorf("an admin: %v", err)
	}
	if err := invoke(t.Context(), n.dial(t), "espm.v1.NodeService/Newer"); codeOf(err) != codes.Unauthenticated {
		t.Errorf("a stranger: %v", err)
	}
}

// A call that came to a handler in another way than by the tap is refused.
func TestNothingPassesBesideTheTap(t *testing.T) {
	gate := auth.NewGate(auth.GateOptions{Refusals: audit.New(nil, audit.Options{Now: time.Now, Log: discard()}), Now: time.Now, Log: discard()})
	e := &edge{log: discard(), gate: gate, now: time.Now, serving: t.Context()}
	handler := func(context.Context, any) (any, error) { t.Error("it was called"); return nil, nil }
	method := "espm.v1.NodeService/ListNodes"
	for name, ctx := range map[string]context.Context{
		"nobody":          t.Context(),
		"a caller alone":  node.WithCaller(t.Context(), node.Caller{Role: node.Admin, Method: method}),
		"not by the gate": context.WithValue(t.Context(), admissionKey{}, admission{Admission: &auth.Admission{}}),
	} {
		if _, err := e.unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/" + method}, handler); codeOf(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A certificate that is revoked ends its streams, and cuts the connection that showed it. Which comes first is not fixed.
func TestRevokedCertificateIsCut(t *testing.T) {
	n := newNetworkRig(t, DefaultLimits)
	pair := n.bundle(t, n.provision(t, "reader.test", ""))
	nodes := espmv1.NewNodeServiceClient(n.dial(t, pair))
	if _, err := nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{}); err != nil {
		t.Fatal(err)
	}
	w, err := nodes.WatchNodes(t.Context(), &espmv1.WatchNodesRequest{AfterRevision: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	n.terminateAndWait(t, "reader.test")
	if _, err := w.Recv(); codeOf(err) != codes.Unauthenticated && codeOf(err) != codes.Unavailable {
		t.Errorf("the watch: %v", err)
	}
	if _, err := nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{}); codeOf(err) != codes.Unauthenticated && codeOf(err) != codes.Unavailable {
		t.Errorf("the next call: %v", err)
	}
}

// refuses waits until the gate knows that a certificate is revoked.
func (n *networkRig) refuses(t *testing.T, pair tls.Certificate) {
	t.Helper()
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); n.gate.NetworkPeer("", []*x509.Certificate{leaf}).Check() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the certificate of %s is accepted still", leaf.Subject)
		}
	}
}

// While a CRL is read, which takes as long as a test wants from a pipe, calls and handshakes go on
// with the one that was read before. What it lists counts as soon as it is read.
func TestReadOfACRLHoldsUpNoCall(t *testing.T) {
	r := prepareRig(t, bolt.Options{})
	published, crl := filepath.Join(r.dir, "ca", "ca_crl.pem"), filepath.Join(r.dir, "crl.pem")
	replace := func(with func(path string) error) {
		t.Helper()
		if err := errors.Join(with(crl+".new"), os.Rename(crl+".new", crl)); err != nil {
			t.Fatal(err)
		}
	}
	replace(func(path string) error { return os.Link(published, path) })
	n := r.onNetwork(t, DefaultLimits, crl)
	list := func(conn *grpc.ClientConn) error { return invoke(t.Context(), conn, "espm.v1.NodeService/ListNodes") }
	pair := n.bundle(t, n.provision(t, "reader.test", ""))
	standing := n.dial(t, pair)
	if err := list(standing); err != nil {
		t.Fatal(err)
	}
	n.terminateAndWait(t, "reader.test")
	replace(func(path string) error { return unix.Mkfifo(path, 0o600) })
	pipe, err := os.OpenFile(crl, os.O_WRONLY, 0) // waits until the CRL is being read
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if err := errors.Join(list(standing), list(n.dial(t, n.ca.leaf(t, "reader.test", nil))), list(n.dial(t, pair))); err != nil {
		t.Errorf("while the CRL is read: %v", err)
	}
	text, err := os.ReadFile(published)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := pipe.Close(); err != nil {
		t.Fatal(err)
	}
	n.refuses(t, pair)
}

func wasDenied(err error) bool {
	return codeOf(err) == codes.Unauthenticated || codeOf(err) == codes.PermissionDenied
}

// refusals checks that the audit log has so many refused calls after a line, each by itself or in a sum, and nothing that was done.
func (n *networkRig) refusals(t *testing.T, last, want int64) {
	t.Helper()
	ended, end := context.WithCancel(t.Context())
	end()
	n.audit.Run(ended) // which writes the sums
	var got int64
	for _, l := range n.fresh(t, &last) {
		switch {
		case l.GetAction() == string(node.ActionBackup) && l.GetRole() == "admin":
			// was asked for, and made
		case l.GetOutcome() == "ok" && l.GetAction() != string(node.ActionManyRefused):
			t.Errorf("something was done: %v", l)
		default:
			got += max(l.GetCount(), 1)
		}
	}
	if got < want { // connections that were refused have theirs, too
		t.Errorf("the audit log has %d refused calls, there were %d", got, want)
	}
}

// A connection that is refused has an audit line, which says why.
func TestRefusedConnectionsAreAudited(t *testing.T) {
	for name, c := range newNetworkRig(t, DefaultLimits).callers(t) {
		if c.code != codes.Unavailable || c.role != "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			n := newNetworkRig(t, DefaultLimits)
			c := n.callers(t)[name]
			var last int64
			n.fresh(t, &last)
			_ = invoke(c.ctx, c.conn, "espm.v1.NodeService/ListNodes")
			// The client may know of the refusal before the server has written it down.
			var lines []*espmv1.AuditLine
			deadline := time.After(time.Minute)
			for tick := time.Tick(10 * time.Millisecond); len(lines) == 0; lines = n.fresh(t, &last) {
				select {
				case <-tick:
				case <-deadline:
					t.Fatal("there is no line")
				}
			}
			if l := lines[0]; l.GetAction() != "connect" || l.GetOutcome() != "UNAUTHENTICATED" || l.GetPrincipal() != "anonymous" || l.GetComment() == "" || !strings.HasPrefix(l.GetPeer(), "127.0.0.1:") {
				t.Error(l)
			}
		})
	}
}
