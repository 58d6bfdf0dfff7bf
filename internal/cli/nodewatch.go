package cli

import (
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) nodeClassifyCmd() *cobra.Command {
	req := &espmv1.ClassifyNodeRequest{}
	c := &cobra.Command{
		Use:   "classify NAME",
		Short: "Print a node's merged classification, over the API",
		Long: `Prints a node's classification, merged with that of its groups, as YAML. Unlike 'espm enc' it asks over the
API, so it also works from another host. A node that is not registered is an error, whatever
enc.unknown_nodes says. Sensitive values are hidden without --reveal-sensitive.`,
		Example: "  espm node classify web1.example.com",
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Certname = args[0]
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewClassifierServiceClient(conn).ClassifyNode(cmd.Context(), req)
				if err != nil {
					return err
				}
				return a.yaml(args[0], []byte(resp.GetYaml()))
			})
		},
	}
	c.Flags().BoolVar(&req.RevealSensitive, "reveal-sensitive", false, revealUsage)
	return c
}

func (a *app) nodeWatchCmd() *cobra.Command {
	req := &espmv1.WatchNodesRequest{}
	c := &cobra.Command{
		Use:   "watch",
		Short: "Show nodes as they change, until interrupted",
		Long: `Shows each live node as it changes. A node that was terminated has the state "gone". The revision of a line
is where a later watch goes on.`,
		Example: "  espm node watch -o json --after-revision 4711",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				stream, err := espmv1.NewNodeServiceClient(conn).WatchNodes(cmd.Context(), req)
				if err != nil {
					return err
				}
				p := &pager{app: a, columns: []string{"CERTNAME", "STATE", "REVISION", "+OWNER", "+UID"}}
				return p.watch(cmd.Context(), func() (proto.Message, error) { return stream.Recv() }, changeRow)
			})
		},
	}
	c.Flags().Int64Var(&req.AfterRevision, "after-revision", 0, "begin after this revision of the store (default: now)")
	return c
}

func changeRow(m proto.Message) []string {
	ev := m.(*espmv1.WatchNodesResponse)
	state := "gone"
	if ev.GetNode() != nil {
		state = word(ev.GetNode().GetState(), "NODE_STATE_")
	}
	return []string{ev.GetCertname(), state, fmt.Sprint(ev.GetRevision()), dash(ev.GetNode().GetOwner()), dash(ev.GetNode().GetUid())}
}
