package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// A call that heeds its context ends with the drain, and the server's stop is orderly.
func TestShutdownEndsCalls(t *testing.T) {
	r := newRig(t)
	r.provision(t, "a.test", "")
	r.authority.down.Store(true)
	orders, err := r.revocations.WatchRevocations(t.Context(), &espmv1.WatchRevocationsRequest{AfterRevision: 1})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := r.nodes.TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{Certname: "a.test", Wait: durationpb.New(time.Hour)})
		ended <- err
	}()
	if _, err := orders.Recv(); err != nil { // the call waits for the receipt of its order now
		t.Fatal(err)
	}
	if err := r.grpc.Shutdown(10*time.Millisecond, time.Minute); err != nil {
		t.Error(err)
	}
	if err := <-ended; status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}

// A call that ignores its context does not hold up the stop. The error names its method.
func TestShutdownLeavesACallThatIgnoresItsEnd(t *testing.T) {
	r := newRig(t)
	begun, release := make(chan struct{}), make(chan struct{})
	hang := func() error { close(begun); <-release; return nil }
	r.authority.onTrust.Store(&hang)
	t.Cleanup(func() { close(release) }) // before the rig's own, which waits for the call
	go func() { _, _ = r.certs.GetTrustBundle(t.Context(), &espmv1.GetTrustBundleRequest{}) }()
	<-begun
	err := r.grpc.Shutdown(10*time.Millisecond, 10*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "espm.v1.CertificateService/GetTrustBundle (1)") {
		t.Errorf("got %v", err)
	}
}

// The work of a call is not begun if nobody waits for it any more.
func TestAbandonedCallsDoNoWork(t *testing.T) {
	r := newRig(t)
	l, err := net.Listen("unix", filepath.Join(r.dir, "peer"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer, err := r.gate.LocalPeer(conn.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	const method = "espm.v1.NodeService/ListNodes"
	admitted, err := r.gate.Admit(auth.Request{Peer: peer, Method: method})
	if err != nil {
		t.Fatal(err)
	}
	a := admission{Admission: admitted, arrived: func() bool { return true }}
	ctx, cancel := context.WithCancel(context.WithValue(node.WithCaller(t.Context(), a.Caller()), admissionKey{}, a))
	cancel()
	log := logrus.New()
	log.SetOutput(io.Discard)
	e := &edge{gate: r.gate, log: log}
	_, err = e.unary(ctx, &espmv1.ListNodesRequest{}, &grpc.UnaryServerInfo{FullMethod: "/" + method}, func(context.Context, any) (any, error) {
		t.Error("the handler was called")
		return nil, errors.New("called")
	})
	expect(t, err, codes.Canceled, "CANCELED")
}
