package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) groupCmd() *cobra.Command {
	return noun("group", "Keep the groups that nodes inherit",
		a.groupCreateCmd(), a.groupUpdateCmd(), a.groupListCmd(), a.groupShowCmd(), a.groupDeleteCmd())
}

type groupFlags struct {
	classifyFlags
	description string
	parents     []string
}

func (f *groupFlags) add(c *cobra.Command) {
	f.classifyFlags.add(c.Flags())
	c.Flags().StringVar(&f.description, "description", "", "what the group is for")
	c.Flags().StringArrayVar(&f.parents, "parent", nil, "group that this group inherits; repeatable")
}

func (f *groupFlags) group(name string) (*espmv1.Group, error) {
	c, err := f.classification()
	return &espmv1.Group{Name: name, Description: f.description, Parents: f.parents, Classification: c}, err
}

func (a *app) groupCreateCmd() *cobra.Command {
	var f groupFlags
	var file recordFile
	c := &cobra.Command{
		Use:   "create NAME | --file FILE",
		Short: "Create a group",
		Long: `Creates a group that nodes and other groups can inherit.

With --file the group is as 'espm group show NAME -o yaml' prints one. Its times and its revision are ignored.`,
		Example: `  espm group create web --parent base --class 'nginx={"workers":4}'
  espm group create -f web.yaml`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var g *espmv1.Group
			if len(args) > 0 {
				g, err = f.group(args[0])
			} else {
				g, _, err = file.readGroup(cmd.Flags())
			}
			if err != nil {
				return err
			}
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewGroupServiceClient(conn).CreateGroup(cmd.Context(), &espmv1.CreateGroupRequest{Group: g})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { groupTable(w, resp.GetGroup()) })
			})
		},
	}
	f.add(c)
	file.add(c, "group")
	return c
}

var groupPaths = map[string]string{
	"classification": "classification",
	"environment":    "classification.environment",
	"class":          "classification.classes",
	"parameter":      "classification.parameters",
	"sensitive":      "classification.sensitive",
	"description":    "description",
	"parent":         "parents",
}

func (a *app) groupUpdateCmd() *cobra.Command {
	var f groupFlags
	var file recordFile
	var clear []string
	var revision int64
	var reveal bool
	c := &cobra.Command{
		Use:   "update NAME | --file FILE",
		Short: "Change a group",
		Long: `Changes what flags are given for. Each flag replaces all that was set of its kind.

With --file the group becomes as the file says: a classification, description or parents that the
file lacks are emptied. The times in the file are ignored. If the file has a revision and the
group has another by now, the update is refused.`,
		Example: `  espm group update web --class 'nginx={"workers":8}' --clear parent
  espm group show web -o yaml >web.yaml; vi web.yaml; espm group update -f web.yaml`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var g *espmv1.Group
			var paths []string
			if len(args) == 0 {
				g, paths, err = file.readGroup(cmd.Flags())
			} else if g, err = f.group(args[0]); err == nil {
				g.Revision = revision
				paths, err = mask(cmd.Flags(), groupPaths, clear)
			}
			if err != nil {
				return err
			}
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewGroupServiceClient(conn).UpdateGroup(cmd.Context(),
					&espmv1.UpdateGroupRequest{Group: g, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}, RevealSensitive: reveal})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { groupTable(w, resp.GetGroup()) })
			})
		},
	}
	f.add(c)
	file.add(c, "group")
	c.Flags().StringArrayVar(&clear, "clear", nil, "empty environment, class, parameter, sensitive, classification, description or parent; repeatable")
	c.Flags().Int64Var(&revision, "revision", 0, "refuse the change if the group has another revision")
	c.Flags().BoolVar(&reveal, "reveal-sensitive", false, markUsage)
	return c
}

func (a *app) groupListCmd() *cobra.Command {
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the groups",
		Example: "  espm group list --sort=-classes",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				client := espmv1.NewGroupServiceClient(conn)
				row := func(g *espmv1.Group) []string {
					return []string{g.GetName(), dash(strings.Join(g.GetParents(), ",")), dash(g.GetClassification().GetEnvironment()),
						fmt.Sprint(len(g.GetClassification().GetClasses())), dash(g.GetDescription())}
				}
				return list(a, []string{"NAME", "PARENTS", "ENVIRONMENT", "CLASSES", "DESCRIPTION"}, row, func(token string) ([]*espmv1.Group, string, error) {
					resp, err := client.ListGroups(cmd.Context(), &espmv1.ListGroupsRequest{PageSize: 1000, PageToken: token})
					return resp.GetGroups(), resp.GetNextPageToken(), err
				})
			})
		},
	}
	a.sortable(c.Flags())
	return c
}

func (a *app) groupShowCmd() *cobra.Command {
	var reveal bool
	c := &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a group",
		Example: "  espm group show web -o yaml >web.yaml",
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewGroupServiceClient(conn).GetGroup(cmd.Context(), &espmv1.GetGroupRequest{Name: args[0], RevealSensitive: reveal})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { groupTable(w, resp.GetGroup()) })
			})
		},
	}
	c.Flags().BoolVar(&reveal, "reveal-sensitive", false, revealUsage)
	return c
}

func (a *app) groupDeleteCmd() *cobra.Command {
	var revision int64
	c := &cobra.Command{
		Use:     "delete NAME",
		Short:   "Delete a group that nothing inherits",
		Example: "  espm group delete web --revision 17",
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewGroupServiceClient(conn).DeleteGroup(cmd.Context(), &espmv1.DeleteGroupRequest{Name: args[0], Revision: revision})
				if err != nil {
					return err
				}
				if a.output == "name" {
					return a.names(args[0])
				}
				return a.show(resp, func(w io.Writer) { fmt.Fprintf(w, "deleted\t%s\n", args[0]) })
			})
		},
	}
	c.Flags().Int64Var(&revision, "revision", 0, "refuse to delete if the group has another revision")
	return c
}

func groupTable(w io.Writer, g *espmv1.Group) {
	fmt.Fprintf(w, "name\t%s\ndescription\t%s\nparents\t%s\n", g.GetName(), dash(g.GetDescription()), dash(strings.Join(g.GetParents(), ", ")))
	classificationTable(w, g.GetClassification())
	fmt.Fprintf(w, "created\t%s\nupdated\t%s\nrevision\t%d\n", when(g.GetCreateTime()), when(g.GetUpdateTime()), g.GetRevision())
}

func classificationTable(w io.Writer, c *espmv1.Classification) {
	fmt.Fprintf(w, "environment\t%s\n", dash(c.GetEnvironment()))
	for _, name := range slices.Sorted(maps.Keys(c.GetClasses())) {
		fmt.Fprintf(w, "class\t%s\n", name)
		valueTable(w, name+".", c.GetClasses()[name].GetParameters())
	}
	valueTable(w, "", c.GetParameters())
	for _, setting := range c.GetSensitive() {
		fmt.Fprintf(w, "sensitive\t%s\n", setting)
	}
}

// valueText returns a value as JSON in one line. json.Compact makes the white space stable, which
// protojson varies on purpose.
func valueText(v *structpb.Value) string {
	raw, err := v.MarshalJSON()
	var b bytes.Buffer
	if err != nil || json.Compact(&b, raw) != nil {
		return "?"
	}
	return b.String()
}

func valueTable(w io.Writer, prefix string, values map[string]*structpb.Value) {
	for _, k := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(w, "parameter\t%s%s = %s\n", prefix, k, valueText(values[k]))
	}
}
