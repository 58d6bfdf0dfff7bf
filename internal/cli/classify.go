package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/structpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// classifyFlags are the flags of a classification, on nodes and groups.
type classifyFlags struct {
	environment string
	classes     []string
	parameters  []string
	sensitive   []string
	file        string
}

const (
	revealUsage = "show sensitive values; admins only"
	markUsage   = "show sensitive values, and allow a change that takes the mark off a value that stays; admins only"
)

func (f *classifyFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.environment, "environment", "", "Puppet environment")
	flags.StringArrayVar(&f.classes, "class", nil, "class, and its parameters as a JSON object or in a file: NAME[=JSON|=@FILE]; @- is standard input; repeatable")
	flags.StringArrayVar(&f.parameters, "parameter", nil, `top-scope parameter, as JSON or in a file: NAME=JSON|NAME=@FILE; a string is written NAME='"text"'; repeatable`)
	flags.StringArrayVar(&f.sensitive, "sensitive", nil, "setting whose value is shown to Puppet and, on request, to admins: 'classes[CLASS].NAME' or 'parameters[NAME]'; repeatable")
	flags.StringVar(&f.file, "classification", "", "file with environment, classes, parameters and sensitive in YAML, as under classification in -o yaml; - for standard input")
}

func (f *classifyFlags) classification() (*espmv1.Classification, error) {
	var in input
	if f.file != "" {
		if f.environment != "" || f.classes != nil || f.parameters != nil || f.sensitive != nil {
			return nil, usageError{errors.New("--classification: excludes --environment, --class, --parameter and --sensitive")}
		}
		data, err := in.read(f.file)
		if err != nil {
			return nil, fmt.Errorf("--classification: %w", err)
		}
		c, err := parseClassification(data)
		if err != nil {
			return nil, usageError{fmt.Errorf("--classification %s: %w", f.file, err)}
		}
		return c, nil
	}
	c := &espmv1.Classification{Environment: f.environment, Sensitive: f.sensitive, Classes: map[string]*espmv1.ClassParameters{}, Parameters: map[string]*structpb.Value{}}
	for _, arg := range f.classes {
		name, text, given := strings.Cut(arg, "=")
		params := &espmv1.ClassParameters{}
		if given {
			v, err := in.parseJSON("--class "+name, text)
			if err != nil {
				return nil, err
			}
			if v.GetStructValue() == nil {
				return nil, usageError{fmt.Errorf("--class %s: its parameters must be a JSON object", name)}
			}
			params.Parameters = v.GetStructValue().GetFields()
		}
		if _, twice := c.Classes[name]; twice {
			return nil, usageError{fmt.Errorf("--class %s: given twice", name)}
		}
		c.Classes[name] = params
	}
	for _, arg := range f.parameters {
		name, text, given := strings.Cut(arg, "=")
		if !given {
			return nil, usageError{errors.New("--parameter: wants NAME=JSON or NAME=@FILE")} // the argument is not printed: it may be the value alone, and secret
		}
		v, err := in.parseJSON("--parameter "+name, text)
		if err != nil {
			return nil, err
		}
		if _, twice := c.Parameters[name]; twice {
			return nil, usageError{fmt.Errorf("--parameter %s: given twice", name)}
		}
		c.Parameters[name] = v
	}
	return c, nil
}

// parseJSON parses a value, or reads it from a file if the text is @FILE. Errors contain neither the value
// nor the decoder's error, which quotes the value. The value may be sensitive: only the store knows.
func (in *input) parseJSON(flag, text string) (*structpb.Value, error) {
	data := []byte(text)
	if path, ok := strings.CutPrefix(text, "@"); ok {
		var err error
		if data, err = in.read(path); err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
	}
	if !json.Valid(data) {
		return nil, usageError{fmt.Errorf(`%s: is not JSON; a string is written '"text"'`, flag)}
	}
	v := &structpb.Value{}
	if v.UnmarshalJSON(data) != nil {
		return nil, usageError{fmt.Errorf("%s: has a name twice, a number that is too large, or a string that is not UTF-8", flag)}
	}
	return v, nil
}

func pairs(flag string, given []string) (map[string]string, error) {
	out := map[string]string{}
	for _, arg := range given {
		k, v, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, usageError{fmt.Errorf("%s %q: wants NAME=VALUE", flag, arg)}
		}
		if _, twice := out[k]; twice {
			return nil, usageError{fmt.Errorf("%s %s: given twice", flag, k)}
		}
		out[k] = v
	}
	return out, nil
}

// mask returns the paths of the flags that were given, and of the flags to clear.
func mask(flags *pflag.FlagSet, paths map[string]string, clear []string) ([]string, error) {
	var out []string
	flags.Visit(func(f *pflag.Flag) {
		if path, ok := paths[f.Name]; ok {
			out = append(out, path)
		}
	})
	for _, name := range clear {
		path, ok := paths[name]
		if !ok {
			return nil, usageError{fmt.Errorf("--clear: must be one of %s, is %q", strings.Join(slices.Sorted(maps.Keys(paths)), ", "), name)}
		}
		if flags.Changed(name) {
			return nil, usageError{fmt.Errorf("--clear %s and --%s exclude each other", name, name)}
		}
		out = append(out, path)
	}
	if len(out) == 0 {
		return nil, usageError{errors.New("nothing to change: give a flag such as --class, --clear or --file")}
	}
	return out, nil
}
