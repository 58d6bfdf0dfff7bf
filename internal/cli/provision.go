package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// specFlags are the flags that describe a certificate.
type specFlags struct {
	csr, algorithm string
	ttl            node.Duration
	names, exts    []string
}

func (f *specFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.csr, "csr", "", "file with a CSR in PEM; espm certifies its key and makes none")
	c.Flags().StringVar(&f.algorithm, "key-algorithm", "", "key to make: ec-p256, rsa-2048, rsa-3072 or rsa-4096 (default: the daemon's)")
	durationVar(c.Flags(), &f.ttl, "ttl", "validity of the certificate, such as 400d (default: the daemon's)")
	c.Flags().StringArrayVar(&f.names, "dns-alt-name", nil, "further DNS name in the certificate; repeatable")
	c.Flags().StringArrayVar(&f.exts, "extension", nil, "Puppet extension in the certificate, such as pp_role=web; repeatable")
}

func (f *specFlags) spec() (*espmv1.CertificateSpec, error) {
	spec := &espmv1.CertificateSpec{KeyAlgorithm: f.algorithm, DnsAltNames: f.names}
	if f.ttl != 0 {
		spec.Ttl = durationpb.New(time.Duration(f.ttl))
	}
	var err error
	if spec.Extensions, err = pairs("--extension", f.exts); err != nil {
		return nil, err
	}
	if f.csr != "" {
		if spec.CsrPem, err = os.ReadFile(f.csr); err != nil {
			return nil, fmt.Errorf("--csr: %w", err)
		}
	}
	return spec, nil
}

const provisionLong = `Registers and classifies a node and has its certificate signed, before the node boots.
The command overwrites nothing.

--out DIR writes what the agent needs; DIR can be the agent's --confdir. The files are puppet.conf,
ssl/certs/NAME.pem, ssl/certs/ca.pem, ssl/crl.pem and, unless --csr is given,
ssl/private_keys/NAME.pem.

--format writes one document instead, to standard output or to the file --out:

  tar         those files, in an archive
  json        the same as one object of strings, with the uid and the request id
  cloud-init  user data that writes the files and runs the first-boot script
  ignition    the same for Ignition

--seal-to encrypts the bundle: only the age identity opens it. The sealed bundle is a gzipped tar
archive, which 'age -d -i IDENTITY | tar -xz' unpacks. Sealed user data needs age on the instance, and
opens the bundle with the age identity that the instance has at --identity.

--claim-within sets a launch deadline. If nobody asks for the node's first catalog by then, espm
terminates the node. Do not set a deadline for a node whose agent runs only once: if the daemon is
down during that run, espm does not notice the run.`

func (a *app) nodeProvisionCmd() *cobra.Command {
	var f nodeFlags
	var s specFlags
	var d deliveryFlags
	var requestID string
	var within node.Duration
	c := &cobra.Command{
		Use:   "provision NAME (--out DIR | --format tar|cloud-init|json|ignition)",
		Short: "Register and classify a node and have its certificate signed, before it boots",
		Long:  provisionLong,
		Example: `  espm node provision web1.example.com --class nginx --out web1
  puppet agent --test --confdir "$PWD/web1"
  espm node provision web2.example.com --format cloud-init --out web2.user-data
  espm node provision web3.example.com --format tar --seal-to age1... >web3.tar.gz.age`,
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
			n, err := f.node(args[0])
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
			req := &espmv1.ProvisionNodeRequest{Node: n, Certificate: spec, RequestId: requestID}
			if cmd.Flags().Changed("claim-within") {
				req.ClaimWithin = durationpb.New(time.Duration(within))
			}
			return a.deliver(args[0], requestID, out, func(conn *grpc.ClientConn) (*espmv1.ProvisionNodeResponse, error) {
				return espmv1.NewNodeServiceClient(conn).ProvisionNode(cmd.Context(), req)
			})
		},
	}
	f.add(c)
	s.add(c)
	d.add(c)
	c.Flags().StringVar(&requestID, "request-id", "", "makes a retry safe: see docs/api.md (default: a random one)")
	durationVar(c.Flags(), &within, "claim-within", "launch deadline: terminate the node unless its first catalog is asked for within this time, from 1m to 30d")
	return c
}

// deliver requests a certificate, and writes the bundle for the instance.
func (a *app) deliver(certname, requestID string, out *delivery, call func(*grpc.ClientConn) (*espmv1.ProvisionNodeResponse, error)) error {
	return a.call(func(conn *grpc.ClientConn) error {
		resp, err := call(conn)
		if a.unanswered(err) {
			fmt.Fprintf(a.stderr, "espm: the daemon may still have done it: run the same again with --request-id %s\n", requestID)
		}
		if err != nil {
			return err
		}
		if err := out.write(a.stdout, resp, requestID); err != nil {
			return fmt.Errorf("%q has its certificate, but its files could not be written: %w; mend that, remove what is in %s, and run the same again with --request-id %s",
				certname, err, out.target(), requestID)
		}
		if out.out == "" {
			return nil // standard output has only the document
		}
		resp.Bundle = nil // the private key is only in the file
		return a.show(resp, func(w io.Writer) {
			nodeTable(w, resp.GetNode())
			fmt.Fprintf(w, "written to\t%s\n", out.out)
		})
	})
}

// unanswered reports whether a call may have been applied although its answer was lost.
func (a *app) unanswered(err error) bool {
	s, ok := status.FromError(err)
	if !ok || reason(s) != "" || a.refused(s) || strings.Contains(s.Message(), "while dialing") {
		return false
	}
	return slices.Contains([]codes.Code{codes.Unavailable, codes.Canceled, codes.DeadlineExceeded}, s.Code())
}
