package cli

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// recordFile is a file with a whole record, in the form that show and list print.
type recordFile struct{ noun, path string }

func (r *recordFile) add(c *cobra.Command, noun string) {
	r.noun = noun
	c.Flags().StringVarP(&r.path, "file", "f", "", "file with the whole "+noun+" in YAML or JSON, as 'espm "+noun+" show NAME -o yaml' prints it; - for standard input")
	c.Args = func(cmd *cobra.Command, given []string) error {
		switch fromFile := cmd.Flags().Changed("file"); {
		case fromFile && len(given) > 0:
			return usageError{fmt.Errorf("--file: the file names the %s; leave NAME out", noun)}
		case !fromFile && len(given) != 1:
			return usageError{fmt.Errorf("wants NAME or --file FILE, got %d arguments", len(given))}
		}
		return nil
	}
}

// read returns the text of the file. A file and the flags that describe a record exclude each other.
func (r *recordFile) read(flags *pflag.FlagSet) ([]byte, error) {
	var beside error
	flags.Visit(func(f *pflag.Flag) {
		_, node := nodePaths[f.Name]
		_, group := groupPaths[f.Name]
		if node || group || f.Name == "clear" || f.Name == "revision" {
			beside = usageError{fmt.Errorf("--file: has the whole %s and excludes --%s", r.noun, f.Name)}
		}
	})
	if beside != nil {
		return nil, beside
	}
	var in input
	data, err := in.read(r.path)
	if err != nil {
		return nil, fmt.Errorf("--file: %w", err)
	}
	return data, nil
}

// readNode returns the node in the file, and the update mask.
func (r *recordFile) readNode(flags *pflag.FlagSet) (*espmv1.Node, []string, error) {
	data, err := r.read(flags)
	if err != nil {
		return nil, nil, err
	}
	n, paths, err := parseNode(data)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("--file %s: %w", r.path, err)}
	}
	return n, paths, nil
}

// readGroup returns the group in the file, and the update mask.
func (r *recordFile) readGroup(flags *pflag.FlagSet) (*espmv1.Group, []string, error) {
	data, err := r.read(flags)
	if err != nil {
		return nil, nil, err
	}
	g, err := parseGroup(data)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("--file %s: %w", r.path, err)}
	}
	return g, []string{"classification", "description", "parents"}, nil
}

// parseNode returns the node and the update mask. The mask has the owner only if the text has it: an
// update keeps the owner otherwise. See parseClassification for the errors.
func parseNode(data []byte) (*espmv1.Node, []string, error) {
	m, paths := &espmv1.Node{}, []string{"classification", "groups", "labels"}
	err := parseRecord(data, "node", m, map[string]func(*yaml.Node) error{
		"certname":       text("certname", &m.Certname),
		"uid":            text("uid", &m.Uid),
		"revision":       revision(&m.Revision),
		"groups":         texts("groups", &m.Groups),
		"classification": classificationIn(&m.Classification),
		"labels": func(n *yaml.Node) error {
			m.Labels = map[string]string{}
			return each(n, "labels", "a map of names and strings", func(name string, n *yaml.Node) error {
				var value string
				err := decode(n, "labels["+name+"]", "a string", &value)
				m.Labels[name] = value
				return err
			})
		},
		"owner": func(n *yaml.Node) error {
			paths = append(paths, "owner")
			return decode(n, "owner", "a string", &m.Owner)
		},
	})
	return m, paths, err
}

func parseGroup(data []byte) (*espmv1.Group, error) {
	m := &espmv1.Group{}
	return m, parseRecord(data, "group", m, map[string]func(*yaml.Node) error{
		"name":           text("name", &m.Name),
		"description":    text("description", &m.Description),
		"revision":       revision(&m.Revision),
		"parents":        texts("parents", &m.Parents),
		"classification": classificationIn(&m.Classification),
	})
}

// parseRecord parses the known fields of a record. parseRecord ignores unknown fields: they are
// output-only, or belong to the response around the record.
func parseRecord(data []byte, noun string, m proto.Message, known map[string]func(*yaml.Node) error) error {
	top, err := document(data)
	if err != nil {
		return err
	}
	for i := 0; top.Kind == yaml.MappingNode && i+1 < len(top.Content); i += 2 {
		if top.Content[i].Value == noun {
			top = top.Content[i+1]
			break
		}
	}
	all := m.ProtoReflect().Descriptor().Fields()
	for i := range all.Len() {
		name := string(all.Get(i).Name())
		if known[name] == nil {
			known[name] = func(*yaml.Node) error { return nil }
		}
	}
	return fields(top, "", fmt.Sprintf("one %s, as 'espm %s show NAME -o yaml' prints it", noun, noun), known)
}

func text(name string, to *string) func(*yaml.Node) error {
	return func(n *yaml.Node) error { return decode(n, name, "a string", to) }
}

func texts(name string, to *[]string) func(*yaml.Node) error {
	return func(n *yaml.Node) error { return decode(n, name, "a list of strings", to) }
}

func classificationIn(to **espmv1.Classification) func(*yaml.Node) error {
	return func(n *yaml.Node) (err error) {
		*to, err = classification(n)
		return err
	}
}

// revision parses a number, or a string with a number, as JSON has it for an int64 of protobuf.
func revision(to *int64) func(*yaml.Node) error {
	return func(n *yaml.Node) (err error) {
		if *to, err = strconv.ParseInt(n.Value, 10, 64); err != nil || *to <= 0 {
			return wants(n, "revision", "a number above 0")
		}
		return nil
	}
}
