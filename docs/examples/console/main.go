// Console shows how a control plane calls espm's API: it provisions a node
// before its instance is launched, and terminates it when the launch fails or the instance is gone.
//
//	console SOCKET NAME
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "console:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("wants SOCKET NAME")
	}
	conn, err := grpc.NewClient("unix://"+args[0], grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20))) // a bundle holds the CRL
	if err != nil {
		return err
	}
	defer conn.Close()
	nodes := espmv1.NewNodeServiceClient(conn)

	made, err := provision(ctx, nodes, args[1])
	if err != nil {
		return err
	}
	// To be kept with the instance, durably, before it is launched.
	n := made.GetNode()
	fmt.Println("provisioned", n.GetCertname(), n.GetUid())

	if err := launch(n.GetCertname(), made.GetBundle()); err != nil {
		return errors.Join(err, terminate(ctx, nodes, n))
	}
	// ... and when the instance is gone, however much later:
	return terminate(ctx, nodes, n)
}

// provision asks again until there is an answer, and takes another name where the one wanted is taken.
func provision(ctx context.Context, nodes espmv1.NodeServiceClient, wanted string) (*espmv1.ProvisionNodeResponse, error) {
	host, domain, _ := strings.Cut(wanted, ".")
	name := wanted
	for suffix := 2; suffix <= 10; suffix++ {
		resp, err := retry(ctx, func(ctx context.Context, id string) (*espmv1.ProvisionNodeResponse, error) {
			return nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{
				Node:        &espmv1.Node{Certname: name, Labels: map[string]string{"launched-by": "console"}},
				RequestId:   id,
				ClaimWithin: durationpb.New(time.Hour), // if this program is lost, the node goes by itself
			})
		})
		if reason(err) != "NODE_EXISTS" {
			return resp, err
		}
		name = fmt.Sprintf("%s-%d.%s", host, suffix, domain)
	}
	return nil, fmt.Errorf("no name is left for %s", wanted)
}

// terminate is safe to repeat, and with the uid touches no later node of that name.
func terminate(ctx context.Context, nodes espmv1.NodeServiceClient, n *espmv1.Node) error {
	resp, err := retry(ctx, func(ctx context.Context, _ string) (*espmv1.TerminateNodeResponse, error) {
		return nodes.TerminateNode(ctx, &espmv1.TerminateNodeRequest{Certname: n.GetCertname(), Uid: n.GetUid(), Wait: durationpb.New(10 * time.Second)})
	})
	if err != nil {
		return err
	}
	for _, r := range resp.GetRevocations() {
		fmt.Println("terminated", n.GetCertname(), r.GetState(), "on CRL", r.GetCrlNumber())
	}
	return nil
}

// retry makes a call until it is answered, with one request id for all tries.
func retry[T any](ctx context.Context, call func(ctx context.Context, id string) (T, error)) (T, error) {
	id := uuid.NewString()
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		try, cancel := context.WithTimeout(ctx, 2*time.Minute)
		resp, err := call(try, id)
		cancel()
		again := []codes.Code{codes.Unavailable, codes.Aborted, codes.DeadlineExceeded}
		wait, asked := delay(err)
		if err == nil || !asked && !slices.Contains(again, status.Code(err)) {
			return resp, err
		}
		select {
		case <-time.After(cmp.Or(wait, pause)):
		case <-ctx.Done():
			return resp, err
		}
	}
}

// delay is what espm asks for, where it does: at a limit of the caller's, too.
func delay(err error) (wait time.Duration, asked bool) {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}

func reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// launch stands for the cloud's API: it gets the bundle, and nobody else does.
func launch(certname string, b *espmv1.Bundle) error {
	fmt.Println("launched", certname, "with a key:", len(b.GetPrivateKeyPem()) > 0, "to ask", b.GetMasterUrl())
	if os.Getenv("LAUNCH") == "fails" {
		return errors.New("the cloud has no room")
	}
	return nil
}
