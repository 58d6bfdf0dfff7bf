package cli

import (
	"context"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) nodePresignCmd() *cobra.Command {
	var s specFlags
	var d deliveryFlags
	var uid, requestID string
	c := &cobra.Command{
		Use:   "presign NAME (--out DIR | --format tar|cloud-init|json|ignition)",
		Short: "Have a certificate signed for a registered node that has none",
		Long: `Has a certificate signed for a node that is registered and has no live certificate: one that was
registered without, or whose certificate was revoked. The node's classification stays as it is.

Without --csr, espm makes the private key and returns it once. With --csr, espm certifies the key of the CSR.
--out, --format and --seal-to are as for 'espm node provision'. The command overwrites nothing.`,
		Example: `  espm node presign web1.example.com --out web1
  espm node presign web1.example.com --csr web1.csr --out web1`,
		Args: args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := node.ParseCertname(args[0])
			if err != nil {
				return usageError{err}
			}
			out, err := d.delivery(cmd, name, s.csr != "")
			if err != nil {
				return err
			}
			spec, err := s.spec()
			if err != nil {
				return err
			}
			if err := d.checkFree(name); err != nil {
				return err
			}
			if requestID == "" {
				requestID = uuid.NewString()
			}
			return a.deliver(string(name), requestID, out, func(conn *grpc.ClientConn) (*espmv1.ProvisionNodeResponse, error) {
				return presign(cmd.Context(), conn, &espmv1.PresignCertificateRequest{Certname: string(name), Uid: uid, Certificate: spec, RequestId: requestID})
			})
		},
	}
	s.add(c)
	d.add(c)
	c.Flags().StringVar(&uid, "uid", "", "registration to use; another one is refused (default: the live one)")
	c.Flags().StringVar(&requestID, "request-id", "", "makes a retry safe: see docs/api.md (default: a random one)")
	return c
}

// presign requests a certificate, with the method for a CSR if the request has one. presign returns the
// node and the bundle.
func presign(ctx context.Context, conn *grpc.ClientConn, req *espmv1.PresignCertificateRequest) (*espmv1.ProvisionNodeResponse, error) {
	client := espmv1.NewCertificateServiceClient(conn)
	var answer interface{ GetBundle() *espmv1.Bundle }
	var err error
	if len(req.GetCertificate().GetCsrPem()) > 0 {
		answer, err = client.SignCertificateRequest(ctx, &espmv1.SignCertificateRequestRequest{
			Certname: req.GetCertname(), Uid: req.GetUid(), Certificate: req.GetCertificate(), RequestId: req.GetRequestId(),
		})
	} else {
		answer, err = client.PresignCertificate(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	got, err := espmv1.NewNodeServiceClient(conn).GetNode(ctx, &espmv1.GetNodeRequest{Certname: req.GetCertname(), Uid: req.GetUid()})
	return &espmv1.ProvisionNodeResponse{Node: got.GetNode(), Bundle: answer.GetBundle()}, err
}
