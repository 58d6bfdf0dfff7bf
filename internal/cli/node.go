package cli

import (
	"context"
	"errors"
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
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/secret"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) nodeCmd() *cobra.Command {
	return noun("node", "Register, provision, show and terminate nodes",
		a.nodeRegisterCmd(), a.nodeProvisionCmd(), a.nodeUpdateCmd(), a.nodeListCmd(), a.nodeShowCmd(), a.nodeTerminateCmd())
}

// nodeFlags are those that describe a node.
type nodeFlags struct {
	classifyFlags
	groups []string
	labels []string
}

func (f *nodeFlags) add(c *cobra.Command) {
	f.classifyFlags.add(c.Flags())
	c.Flags().StringArrayVar(&f.groups, "group", nil, "group that the node inherits; repeatable")
	c.Flags().StringArrayVar(&f.labels, "label", nil, "label, NAME=VALUE; repeatable")
}

func (f *nodeFlags) node(certname string) (*espmv1.Node, error) {
	c, err := f.classification()
	if err != nil {
		return nil, err
	}
	labels, err := pairs("--label", f.labels)
	return &espmv1.Node{Certname: certname, Classification: c, Groups: f.groups, Labels: labels}, err
}

func (a *app) nodeRegisterCmd() *cobra.Command {
	var f nodeFlags
	var requestID string
	c := &cobra.Command{
		Use:     "register NAME",
		Short:   "Register and classify a node, without a certificate",
		Example: `  espm node register web1.example.com --class 'nginx={"workers":4}' --parameter 'role="web"'`,
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := f.node(args[0])
			if err != nil {
				return err
			}
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewNodeServiceClient(conn).RegisterNode(cmd.Context(), &espmv1.RegisterNodeRequest{Node: n, RequestId: requestID})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { nodeTable(w, resp.GetNode()) })
			})
		},
	}
	f.add(c)
	c.Flags().StringVar(&requestID, "request-id", "", "makes a retry safe: the same id and content is one registration")
	return c
}

// specFlags are those that describe a certificate.
type specFlags struct {
	csr, algorithm string
	ttl            duration
	names, exts    []string
}

func (f *specFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.csr, "csr", "", "file with a CSR (PEM): its key is certified, none is made")
	c.Flags().StringVar(&f.algorithm, "key-algorithm", "", "key to make: ec-p256, rsa-2048, rsa-3072 or rsa-4096 (the daemon's default)")
	c.Flags().Var(&f.ttl, "ttl", "validity of the certificate, such as 30d (the daemon's default)")
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

func (a *app) nodeProvisionCmd() *cobra.Command {
	var f nodeFlags
	var s specFlags
	var requestID, out string
	var within duration
	c := &cobra.Command{
		Use:   "provision NAME --out DIR",
		Short: "Register and classify a node and have its certificate signed, before it boots",
		Long: `Registers and classifies a node and has its certificate signed. Writes what the
agent needs into DIR, which can be used as its --confdir: puppet.conf,
ssl/certs/NAME.pem, ssl/certs/ca.pem, ssl/crl.pem and, unless --csr is given,
ssl/private_keys/NAME.pem. Overwrites nothing.

With --claim-within, a node whose first catalog is not asked for by then is
terminated by itself. Not for a node whose agent runs only once: a run
while the daemon is down is not noticed.`,
		Example: `  espm node provision web1.example.com --class nginx --out web1
  puppet agent --test --confdir "$PWD/web1"
  espm node provision web2.example.com --claim-within 30m --out web2`,
		Args: args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usageError{errors.New("--out: must be given: the folder to write")}
			}
			name, err := node.ParseCertname(args[0])
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
			if err := bootstrap.CheckFree(out, name); err != nil {
				return err
			}
			if requestID == "" {
				requestID = uuid.NewString()
			}
			req := &espmv1.ProvisionNodeRequest{Node: n, Certificate: spec, RequestId: requestID}
			if cmd.Flags().Changed("claim-within") {
				req.ClaimWithin = durationpb.New(time.Duration(within))
			}
			return a.provision(cmd.Context(), req, name, out)
		},
	}
	f.add(c)
	s.add(c)
	c.Flags().StringVar(&requestID, "request-id", "", "makes a retry safe: see docs/api.md (a random one)")
	c.Flags().Var(&within, "claim-within", "terminate the node unless its first catalog is asked for within this time, from 1m to 30d")
	c.Flags().StringVar(&out, "out", "", "folder to write")
	return c
}

func (a *app) provision(ctx context.Context, req *espmv1.ProvisionNodeRequest, name node.Certname, out string) error {
	return a.call(func(conn *grpc.ClientConn) error {
		resp, err := espmv1.NewNodeServiceClient(conn).ProvisionNode(ctx, req)
		if unanswered(err) {
			fmt.Fprintf(a.stderr, "espm: the daemon may still have done it: run the same again with --request-id %s\n", req.GetRequestId())
		}
		if err != nil {
			return err
		}
		b := bootstrap.Bundle{
			CertificatePEM: resp.GetBundle().GetCertificatePem(),
			PrivateKeyPEM:  secret.New(resp.GetBundle().GetPrivateKeyPem()),
			CAPEM:          resp.GetBundle().GetCaPem(),
			CRLPEM:         resp.GetBundle().GetCrlPem(),
			PuppetConf:     resp.GetBundle().GetPuppetConf(),
		}
		if err := b.Write(out, name); err != nil {
			return fmt.Errorf("%q is provisioned, but its files could not be written: %w; mend that, remove what is in %s, and run the same again with --request-id %s",
				name, err, out, req.GetRequestId())
		}
		resp.Bundle = nil // the private key is for the file alone
		return a.show(resp, func(w io.Writer) {
			nodeTable(w, resp.GetNode())
			fmt.Fprintf(w, "written to\t%s\n", out)
		})
	})
}

// unanswered tells that a call was sent, and that what came of it is not known.
func unanswered(err error) bool {
	s, ok := status.FromError(err)
	if !ok || reason(s) != "" || strings.Contains(s.Message(), "while dialing") {
		return false
	}
	return slices.Contains([]codes.Code{codes.Unavailable, codes.Canceled, codes.DeadlineExceeded}, s.Code())
}

var nodePaths = map[string]string{
	"classification": "classification",
	"environment":    "classification.environment",
	"class":          "classification.classes",
	"parameter":      "classification.parameters",
	"sensitive":      "classification.sensitive",
	"group":          "groups",
	"label":          "labels",
	"owner":          "owner",
}

func (a *app) nodeUpdateCmd() *cobra.Command {
	var f nodeFlags
	var clear []string
	var owner string
	var revision int64
	var reveal bool
	c := &cobra.Command{
		Use:   "update NAME",
		Short: "Change a node's classification, groups, labels or owner",
		Long: `Changes what flags are given for; each replaces all that was set of its kind:
--class all classes, --parameter all parameters, and so on. Only an admin may
give a node to another owner; its certificates and revocations go with it.`,
		Example: `  espm node update web1.example.com --class 'nginx={"workers":8}' --clear group
  espm node update web1.example.com --owner token:ci`,
		Args: args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := f.node(args[0])
			if err != nil {
				return err
			}
			paths, err := mask(cmd.Flags(), nodePaths, clear)
			if err != nil {
				return err
			}
			n.Revision, n.Owner = revision, owner
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewNodeServiceClient(conn).UpdateNode(cmd.Context(),
					&espmv1.UpdateNodeRequest{Node: n, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}, RevealSensitive: reveal})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { nodeTable(w, resp.GetNode()) })
			})
		},
	}
	f.add(c)
	c.Flags().StringVar(&owner, "owner", "", "principal that the node is to belong to, such as token:ci")
	c.Flags().StringArrayVar(&clear, "clear", nil, "empty environment, class, parameter, sensitive, classification, group, label or owner; repeatable")
	c.Flags().Int64Var(&revision, "revision", 0, "refuse if the node's revision is another")
	c.Flags().BoolVar(&reveal, "reveal-sensitive", false, "show sensitive values, and allow to take the mark off one that stays; for admins")
	return c
}

func (a *app) nodeListCmd() *cobra.Command {
	var labels []string
	var group, owner string
	var notSeen duration
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the live nodes",
		Example: "  espm node list --label tier=front --not-seen-for 30d",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := pairs("--label", labels)
			if err != nil {
				return err
			}
			req := &espmv1.ListNodesRequest{PageSize: 1000, Labels: want, Group: group, Owner: owner}
			if cmd.Flags().Changed("not-seen-for") {
				req.NotSeenFor = durationpb.New(time.Duration(notSeen))
			}
			return a.call(func(conn *grpc.ClientConn) error {
				client := espmv1.NewNodeServiceClient(conn)
				return list(a, nodeColumns, nodeRow, func(token string) ([]*espmv1.Node, string, error) {
					req.PageToken = token
					resp, err := client.ListNodes(cmd.Context(), req)
					return resp.GetNodes(), resp.GetNextPageToken(), err
				})
			})
		},
	}
	c.Flags().StringArrayVar(&labels, "label", nil, "only nodes with this label, NAME=VALUE; repeatable")
	c.Flags().StringVar(&group, "group", "", "only nodes directly in this group")
	c.Flags().StringVar(&owner, "owner", "", "only nodes of this principal, such as token:ci")
	c.Flags().Var(&notSeen, "not-seen-for", "only nodes whose catalog was not asked for in this time, such as 30d or 12h; never seen: since it was registered")
	return c
}

var nodeColumns = []string{"CERTNAME", "STATE", "ENVIRONMENT", "GROUPS", "CREATED", "LAST SEEN", "OWNER", "UID"}

func nodeRow(n *espmv1.Node) []string {
	return []string{n.GetCertname(), word(n.GetState(), "NODE_STATE_"), dash(n.GetClassification().GetEnvironment()),
		dash(strings.Join(n.GetGroups(), ",")), when(n.GetCreateTime()), when(n.GetLastSeenTime()), dash(n.GetOwner()), n.GetUid()}
}

func (a *app) nodeShowCmd() *cobra.Command {
	var uid string
	var reveal bool
	c := &cobra.Command{
		Use:   "show NAME",
		Short: "Show a node",
		Args:  args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewNodeServiceClient(conn).GetNode(cmd.Context(), &espmv1.GetNodeRequest{Certname: args[0], Uid: uid, RevealSensitive: reveal})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { nodeTable(w, resp.GetNode()) })
			})
		},
	}
	c.Flags().StringVar(&uid, "uid", "", "one registration, also a terminated one (the live one)")
	c.Flags().BoolVar(&reveal, "reveal-sensitive", false, revealUsage)
	return c
}

func (a *app) nodeTerminateCmd() *cobra.Command {
	req := &espmv1.TerminateNodeRequest{}
	var wait duration
	c := &cobra.Command{
		Use:   "terminate NAME",
		Short: "Take a node out of the classifier and revoke its certificate",
		Long: `Takes a node out of the classifier, at once, and has its certificate revoked. The
order to revoke is durable when the command returns; with --wait it
waits for the revocation itself, and fails if that has not come by then. To see
how far it is, run the same again, with the same --uid; a --reason that was given
before stands.`,
		Example: "  espm node terminate web1.example.com --reason cessationOfOperation --wait 30s",
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Certname, req.Wait = args[0], durationpb.New(time.Duration(wait))
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewNodeServiceClient(conn).TerminateNode(cmd.Context(), req)
				if err != nil {
					return err
				}
				err = a.show(resp, func(w io.Writer) {
					nodeTable(w, resp.GetNode())
					for _, r := range resp.GetRevocations() {
						fmt.Fprintf(w, "revocation\t%s\n", revocationLine(r))
					}
					if resp.GetIssueOpen() {
						fmt.Fprintln(w, "revocation\ta certificate was being issued; what comes of it will be revoked: ask again")
					}
				})
				if err == nil && wait > 0 && !revoked(resp) {
					return fmt.Errorf("%q is terminated, but its revocation is still pending after %v; it will be done, ask again with --uid %s",
						args[0], time.Duration(wait), resp.GetNode().GetUid())
				}
				return err
			})
		},
	}
	c.Flags().StringVar(&req.Reason, "reason", "", reasonUsage)
	c.Flags().StringVar(&req.Uid, "uid", "", "registration to terminate: keeps a late call from touching a successor (the live one)")
	c.Flags().Var(&wait, "wait", "how long to wait for the revocation, such as 30s")
	return c
}

func revoked(resp *espmv1.TerminateNodeResponse) bool {
	pending := func(r *espmv1.Revocation) bool {
		return r.GetState() != espmv1.RevocationState_REVOCATION_STATE_REVOKED
	}
	return !resp.GetIssueOpen() && !slices.ContainsFunc(resp.GetRevocations(), pending)
}

func revocationLine(r *espmv1.Revocation) string {
	line := fmt.Sprintf("serial %s %s", r.GetSerial(), word(r.GetState(), "REVOCATION_STATE_"))
	if r.GetCrlNumber() != "" {
		line += fmt.Sprintf(", on CRL %s, published %s", r.GetCrlNumber(), when(r.GetPublishTime()))
	}
	return line
}
