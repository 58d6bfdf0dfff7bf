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

// recordFile is a file with a whole record, as the noun's show and list print it.
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

// read fills a record from the file. It ignores the record's output-only fields, and what an
// answer has beside the record. The file excludes the flags that describe a record.
func (r *recordFile) read(flags *pflag.FlagSet, m proto.Message, known map[string]func(*yaml.Node) error) error {
	var beside error
	flags.Visit(func(f *pflag.Flag) {
		_, node := nodePaths[f.Name]
		_, group := groupPaths[f.Name]
		if node || group || f.Name == "clear" || f.Name == "revision" {
			beside = usageError{fmt.Errorf("--file: has the whole %s and excludes --%s", r.noun, f.Name)}
		}
	})
	if beside != nil {
		return beside
	}
	var in input
	data, err := in.read(r.path)
	if err != nil {
		return fmt.Errorf("--file: %w", err)
	}
	top, err := document(data)
	if err == nil {
		for i := 0; top.Kind == yaml.MappingNode && i+1 < len(top.Content); i += 2 {
			if top.Content[i].Value == r.noun {
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
		err = fields(top, "", fmt.Sprintf("one %s, as 'espm %s show NAME -o yaml' prints it", r.noun, r.noun), known)
	}
	if err != nil {
		return usageError{fmt.Errorf("--file %s: %w", r.path, err)}
	}
	return nil
}

// readNode returns the node in the file, and the fields that an update sets: all but the owner, which an
// update leaves where the file does not name it.
func (r *recordFile) readNode(flags *pflag.FlagSet) (*espmv1.Node, []string, error) {
	m, paths := &espmv1.Node{}, []string{"classification", "groups", "labels"}
	err := r.read(flags, m, map[string]func(*yaml.Node) error{
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

// readGroup returns the group in the file, and the fields that an update sets.
func (r *recordFile) readGroup(flags *pflag.FlagSet) (*espmv1.Group, []string, error) {
	m := &espmv1.Group{}
	err := r.read(flags, m, map[string]func(*yaml.Node) error{
		"name":           text("name", &m.Name),
		"description":    text("description", &m.Description),
		"revision":       revision(&m.Revision),
		"parents":        texts("parents", &m.Parents),
		"classification": classificationIn(&m.Classification),
	})
	return m, []string{"classification", "description", "parents"}, err
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

// revision reads the number as JSON has it of a protobuf message, a string, or bare.
func revision(to *int64) func(*yaml.Node) error {
	return func(n *yaml.Node) (err error) {
		if *to, err = strconv.ParseInt(n.Value, 10, 64); err != nil || *to <= 0 {
			return wants(n, "revision", "a number above 0")
		}
		return nil
	}
}
