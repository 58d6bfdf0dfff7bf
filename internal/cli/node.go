package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) nodeCmd() *cobra.Command {
	return noun("node", "Register, provision, show and terminate nodes",
		a.nodeRegisterCmd(), a.nodeProvisionCmd(), a.nodePresignCmd(), a.nodeUpdateCmd(), a.nodeListCmd(), a.nodeShowCmd(), a.nodeTerminateCmd(), a.nodeForgetCmd(),
		a.nodeClassifyCmd(), a.nodeWatchCmd())
}

// nodeFlags are the flags that describe a node.
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
	var file recordFile
	var requestID string
	c := &cobra.Command{
		Use:   "register NAME | --file FILE",
		Short: "Register and classify a node, without a certificate",
		Long: `Registers and classifies a node, without a certificate.

With --file the node is as 'espm node show NAME -o yaml' prints one. Output-only fields, such as
state and revision, are ignored. The node belongs to the caller, whatever owner the file names.`,
		Example: `  espm node register web1.example.com --class 'nginx={"workers":4}' --parameter 'role="web"'
  espm node register -f web1.yaml`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var n *espmv1.Node
			if len(args) > 0 {
				n, err = f.node(args[0])
			} else {
				n, _, err = file.readNode(cmd.Flags())
			}
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
	file.add(c, "node")
	c.Flags().StringVar(&requestID, "request-id", "", "makes a retry safe: the same id with the same content is one registration")
	return c
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
	var file recordFile
	var clear []string
	var owner string
	var revision int64
	var reveal bool
	c := &cobra.Command{
		Use:   "update NAME | --file FILE",
		Short: "Change a node's classification, groups, labels or owner",
		Long: `Changes what flags are given for. Each flag replaces all that was set of its kind:
--class all classes, --parameter all parameters, and so on. Only an admin may
give a node to another owner; its certificates and revocations go with it.

With --file the node becomes as the file says: a classification, groups or labels that the file
lacks are emptied. An owner that the file lacks stays. Other fields of 'espm node show' are ignored, but
for uid and revision: if the file has them and the node has others by now, the update is refused.`,
		Example: `  espm node update web1.example.com --class 'nginx={"workers":8}' --clear group
  espm node update web1.example.com --owner token:ci
  espm node show web1.example.com -o yaml >web1.yaml; vi web1.yaml; espm node update -f web1.yaml`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var n *espmv1.Node
			var paths []string
			if len(args) == 0 {
				n, paths, err = file.readNode(cmd.Flags())
			} else if n, err = f.node(args[0]); err == nil {
				n.Revision, n.Owner = revision, owner
				paths, err = mask(cmd.Flags(), nodePaths, clear)
			}
			if err != nil {
				return err
			}
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
	file.add(c, "node")
	c.Flags().StringVar(&owner, "owner", "", "principal that gets the node, such as token:ci")
	c.Flags().StringArrayVar(&clear, "clear", nil, "empty environment, class, parameter, sensitive, classification, group, label or owner; repeatable")
	c.Flags().Int64Var(&revision, "revision", 0, "refuse the change if the node has another revision")
	c.Flags().BoolVar(&reveal, "reveal-sensitive", false, markUsage)
	return c
}

func (a *app) nodeListCmd() *cobra.Command {
	var labels []string
	var group, owner string
	var notSeen node.Duration
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the live nodes",
		Example: "  espm node list -l tier=front,site=a --sort last-seen\n  espm node list --not-seen-for 30d -o name",
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
	c.Flags().StringSliceVarP(&labels, "label", "l", nil, "only nodes with all these labels, NAME=VALUE[,NAME=VALUE...]; repeatable")
	c.Flags().StringVar(&group, "group", "", "only nodes directly in this group")
	c.Flags().StringVar(&owner, "owner", "", "only nodes of this principal, such as token:ci")
	a.sortable(c.Flags())
	durationVar(c.Flags(), &notSeen, "not-seen-for", "only nodes whose catalog nobody asked for in this time, such as 30d or 12h; a node that was never seen counts from its registration")
	return c
}

var nodeColumns = []string{"CERTNAME", "STATE", "ENVIRONMENT", "GROUPS", "CREATED", "LAST SEEN", "+OWNER", "+UID"}

func nodeRow(n *espmv1.Node) []string {
	return []string{n.GetCertname(), word(n.GetState(), "NODE_STATE_"), dash(n.GetClassification().GetEnvironment()),
		dash(strings.Join(n.GetGroups(), ",")), when(n.GetCreateTime()), when(n.GetLastSeenTime()), dash(n.GetOwner()), n.GetUid()}
}

func (a *app) nodeShowCmd() *cobra.Command {
	var uid string
	var reveal bool
	c := &cobra.Command{
		Use:   "show NAME",
		Short: "Show a node and its certificates",
		Example: `  espm node show web1.example.com
  espm node show web1.example.com -o yaml >web1.yaml`,
		Args: args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewNodeServiceClient(conn).GetNode(cmd.Context(), &espmv1.GetNodeRequest{Certname: args[0], Uid: uid, RevealSensitive: reveal})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) {
					nodeTable(w, resp.GetNode())
					certificateLines(w, resp.GetCertificates())
				})
			})
		},
	}
	c.Flags().StringVar(&uid, "uid", "", "registration to show, also a terminated one (default: the live one)")
	c.Flags().BoolVar(&reveal, "reveal-sensitive", false, revealUsage)
	return c
}

func (a *app) nodeTerminateCmd() *cobra.Command {
	req := &espmv1.TerminateNodeRequest{}
	var wait node.Duration
	c := &cobra.Command{
		Use:   "terminate NAME",
		Short: "Take a node out of the classifier and revoke its certificates",
		Long: `Takes a node out of the classifier at once, and orders the revocation of all its certificates.
The order is durable when the command returns.

With --wait the command waits until the certificates are revoked. If they are not revoked
by then, the exit code is 6 and the order stands. To see how far it is, run the same command again
with the same --uid. The --reason of the first call stands.`,
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
				if err != nil || wait == 0 {
					return err
				}
				orders := lastOrders(resp.GetRevocations())
				for _, r := range orders {
					if err := neverRevoked(r); err != nil {
						return fmt.Errorf("%q is terminated, but %w", args[0], err)
					}
				}
				if resp.GetIssueOpen() || slices.ContainsFunc(orders, pending) {
					return exitError{fmt.Errorf("%q is terminated, but its revocation is still pending after %v; it stays ordered: run the same again with --uid %s",
						args[0], wait, resp.GetNode().GetUid()), exitUnavailable}
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&req.Reason, "reason", "", reasonUsage)
	c.Flags().StringVar(&req.Uid, "uid", "", "registration to terminate; a late call then can't end a later node of the same name (default: the live one)")
	durationVar(c.Flags(), &wait, "wait", "how long to wait for the revocation, such as 30s")
	return c
}

func (a *app) nodeForgetCmd() *cobra.Command {
	req := &espmv1.ForgetNodeRequest{}
	c := &cobra.Command{
		Use:   "forget NAME",
		Short: "Take a node out of espm without revoking its certificates",
		Long: `Takes a node out of the classifier, and removes espm's records of its certificates. They stay valid.
It undoes an import. From then on the ENC answers for the node as enc.unknown_nodes says.

To revoke the certificates, use 'espm node terminate' instead. 'espm cert import NAME' takes a forgotten
node back, without its classification, groups and labels: keep 'espm node show NAME -o yaml'.`,
		Example: "  espm node show web1.example.com -o yaml >web1.yaml\n  espm node forget web1.example.com",
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Certname = args[0]
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewNodeServiceClient(conn).ForgetNode(cmd.Context(), req)
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) {
					nodeTable(w, resp.GetNode())
					for _, c := range resp.GetCertificates() {
						fmt.Fprintf(w, "still valid\tserial %s, until %s\n", c.GetSerial(), when(c.GetNotAfterTime()))
					}
				})
			})
		},
	}
	c.Flags().StringVar(&req.Uid, "uid", "", "registration to forget; another one is refused (default: the live one)")
	return c
}

func pending(r *espmv1.Revocation) bool {
	return r.GetState() == espmv1.RevocationState_REVOCATION_STATE_PENDING
}

// lastOrders returns the last revocation order for each certificate. An earlier order was dropped or
// replaced.
func lastOrders(all []*espmv1.Revocation) []*espmv1.Revocation {
	var last []*espmv1.Revocation
	for _, r := range all {
		later := func(o *espmv1.Revocation) bool { return o.GetSerial() == r.GetSerial() && o.GetId() > r.GetId() }
		if !slices.ContainsFunc(all, later) {
			last = append(last, r)
		}
	}
	return last
}

func revocationLine(r *espmv1.Revocation) string {
	line := fmt.Sprintf("serial %s %s", r.GetSerial(), word(r.GetState(), "REVOCATION_STATE_"))
	if r.GetImpossibleReason() != "" {
		line += ": " + firstLine(r.GetImpossibleReason())
	}
	if r.GetCrlNumber() != "" {
		line += fmt.Sprintf(", on CRL %s, published %s", r.GetCrlNumber(), when(r.GetPublishTime()))
	}
	return line
}
