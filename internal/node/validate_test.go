package node

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// Each entry is a node that is sound but for one thing, and says which field
// and which rule the error names.
func TestNodeRules(t *testing.T) {
	for _, test := range []struct {
		what        string
		node        Node
		field, rule string
	}{
		{"certname", Node{Certname: "../x"}, "certname", "labels must not be empty"},

		{"class ::ntp fails in Puppet", classes("::ntp"), `classes["::ntp"]`, "must be a class name in lower case"},
		{"class Ntp loses its parameters", classes("Ntp"), `classes["Ntp"]`, "must be a class name in lower case"},
		{"class ntp::", classes("ntp::"), `classes["ntp::"]`, "must be a class name"},
		{"class ntp:::server", classes("ntp:::server"), `classes["ntp:::server"]`, "must be a class name"},
		{"class ntp::Server", classes("ntp::Server"), `classes["ntp::Server"]`, "must be a class name"},
		{"class ntp:server", classes("ntp:server"), `classes["ntp:server"]`, "must be a class name"},
		{"class 2fa", classes("2fa"), `classes["2fa"]`, "must be a class name"},
		{"class _x", classes("_x"), `classes["_x"]`, "must be a class name"},
		{"class of no name", classes(""), `classes[""]`, "must be a class name"},
		{"class with a newline", classes("ntp\n"), `classes["ntp\n"]`, "must be a class name"},
		{"class of 256 bytes", classes(strings.Repeat("a", 256)), `classes["` + strings.Repeat("a", 80) + `..."]`, "of at most 255 bytes"},

		{"class parameter Servers", class("Servers", nil), `classes[ntp]."Servers"`, "must match [a-z][a-zA-Z0-9_]*"},
		{"class parameter 1", class("1", nil), `classes[ntp]."1"`, "must match [a-z]"},
		{"class parameter of no name", class("", nil), `classes[ntp].""`, "must match [a-z]"},
		{"value of a class parameter", class("servers", []any{"a", 1.5}), "classes[ntp].servers[1]", "not float64"},

		{"environment Production", environment("Production"), "environment", `"Production": must match [a-z0-9_]+`},
		{"environment with a dash", environment("feature-1"), "environment", "must match [a-z0-9_]+"},
		{"environment with a path", environment("../etc"), "environment", "must match [a-z0-9_]+"},
		{"environment of 256 bytes", environment(strings.Repeat("a", 256)), "environment", "at most 255 bytes"},

		{"parameter Role", parameter("Role", nil), `parameters["Role"]`, "must match [a-z][a-zA-Z0-9_]*"},
		{"parameter 0", parameter("0", nil), `parameters["0"]`, "must match"},
		{"parameter _x", parameter("_x", nil), `parameters["_x"]`, "must match"},
		{"parameter a::b", parameter("a::b", nil), `parameters[a::b]`, "must match"},
		{"parameter of 256 bytes", parameter(strings.Repeat("a", 256), nil), `parameters["` + strings.Repeat("a", 80) + `..."]`, "at most 255 bytes"},
	} {
		if test.node.Certname == "" {
			test.node.Certname = "web01.example.com"
		}
		expectViolation(t, test.what, test.node.Validate(), test.field, test.rule)
	}
}

// Puppet sets these top-scope variables itself, and fails on or ignores an ENC's.
func TestReservedParameters(t *testing.T) {
	for _, name := range []string{"environment", "facts", "name", "server_facts", "title", "trusted"} {
		n := parameter(name, "x")
		n.Certname = "web01"
		expectViolation(t, name, n.Validate(), "parameters["+name+"]", "the name is reserved by Puppet")
	}
	n := Node{Certname: "web01", Classification: Classification{
		Classes: map[string]map[string]any{"x": {"environment": "y", "facts": "y", "trusted": "y"}},
	}}
	if err := n.Validate(); err != nil {
		t.Errorf("a class may have parameters of these names: %v", err)
	}
}

func TestNodeOK(t *testing.T) {
	n := Node{
		Certname: "web01.example.com",
		Classification: Classification{
			Environment: "0755_x",
			Classes: map[string]map[string]any{
				"ntp":                    nil,
				"ntp::server":            {},
				"a::b2::c_d":             {"servers": []any{"a", json.Number("1"), nil}, "camelCase": true},
				strings.Repeat("a", 255): {strings.Repeat("b", 255): nil},
			},
			Parameters: map[string]any{
				"role": "web", "camelCase": false, "a_1": json.Number("-1.5e+300"), "none": nil,
				"map": map[string]any{"": "", "Any Key: \n": map[string]any{}, strings.Repeat("k", 255): []any{}},
			},
		},
		Groups: []string{"base", "0", "a.b-c_d", strings.Repeat("g", 64)},
		Labels: map[string]string{"owner": "", "example.com/team-x": "a_B.1:2@3+4-5", strings.Repeat("k", 63): strings.Repeat("v", 128)},
	}
	if err := n.Validate(); err != nil {
		t.Error(err)
	}
}

func TestValueRules(t *testing.T) {
	big := json.Number("1" + strings.Repeat("0", 40))
	for _, test := range []struct {
		what        string
		value       any
		field, rule string
	}{
		{"NUL", "a\x00b", "parameters[p]", "must not hold NUL"},
		{"NUL in a key", map[string]any{"a\x00b": nil}, "parameters[p]", "must not hold NUL"},
		{"invalid UTF-8", "a\xffb", "parameters[p]", "must be valid UTF-8"},
		{"invalid UTF-8 in a key", map[string]any{"\xc3": nil}, "parameters[p]", "must be valid UTF-8"},
		{"half a surrogate pair", "\xed\xa0\x80", "parameters[p]", "must be valid UTF-8"},
		{"merge key", map[string]any{"<<": map[string]any{}}, "parameters[p]", `the key "<<" means a merge`},
		{"deep merge key", []any{map[string]any{"a": map[string]any{"<<": nil}}}, "parameters[p][0].a", `the key "<<"`},
		{"long key", map[string]any{strings.Repeat("k", 256): nil}, "parameters[p]", "at most 255 bytes, has 256"},
		{"lists 31 deep", nestedLists(31), "parameters[p]" + strings.Repeat("[0]", 31), "nested more than 32 deep"},
		{"maps 10,000 deep", nestedMaps(10_000), "parameters[p]" + strings.Repeat(".a", 31), "nested more than 32 deep"},
		{"int", 1, "parameters[p]", "values are null, boolean, number, string, list or map, not int"},
		{"float64", []any{1.5}, "parameters[p][0]", "not float64"},
		{"[]string", []string{"a"}, "parameters[p]", "not []string"},
		{"map[string]string", map[string]any{"k": map[string]string{}}, "parameters[p].k", "not map[string]string"},
		{"number of 41 digits", big, "parameters[p]", "is not a number JSON and YAML agree on"},
		{"number 1e400", json.Number("1e400"), "parameters[p]", "1e400"},
		{"number 01", json.Number("01"), "parameters[p]", `"01" is not a number`},
		{"number NaN", json.Number("NaN"), "parameters[p]", "is not a number"},
		{"number 0x10", json.Number("0x10"), "parameters[p]", "is not a number"},
		{"number of nothing", json.Number(""), "parameters[p]", "is not a number"},
		{"number true", json.Number("true"), "parameters[p]", "is not a number"},
		{"number with an end of line", json.Number("1\n"), "parameters[p]", "is not a number"},
		{"number with a space", json.Number(" 1"), "parameters[p]", "is not a number"},
	} {
		n := parameter("p", test.value)
		n.Certname = "web01"
		expectViolation(t, test.what, n.Validate(), test.field, test.rule)
	}
}

func TestDepthAllowed(t *testing.T) {
	for _, value := range []any{nestedLists(30), nestedMaps(30)} {
		n := parameter("p", value)
		n.Certname = "web01"
		if err := n.Validate(); err != nil {
			t.Error(err)
		}
	}
}

// A node's own part has at most 1,000,000 characters as YAML, so that with the
// 2,000,000 of its groups it stays below Puppet's 3,145,728.
func TestSizeLimits(t *testing.T) {
	for _, size := range []int{1_000_000, 10 << 20} {
		n := parameter("p", strings.Repeat("x", size))
		n.Certname = "web01"
		expectViolation(t, fmt.Sprint(size), n.Validate(), "classification", "have at most 1000000 characters as YAML, these have up to 1")
	}
	n := parameter("p", strings.Repeat("x", 999_000))
	n.Certname = "web01"
	if err := n.Validate(); err != nil {
		t.Errorf("999,000 characters: %v", err)
	}
	n = parameter("p", strings.Repeat("\x01", 100_000)) // \x01 takes four as YAML
	if size := n.Classification.Size(); size < 400_000 {
		t.Errorf("100,000 escaped characters are counted as %d", size)
	}
	g := Group{Name: "g", Classification: parameter("p", strings.Repeat("x", 1_999_000)).Classification}
	if err := g.Validate(); err != nil {
		t.Errorf("a group of 1,999,000 characters: %v", err)
	}
	g.Classification.Parameters["q"] = strings.Repeat("x", 1_000)
	expectViolation(t, "group", g.Validate(), "classification", "have at most 2000000 characters")
}

func TestGroupAndLabelRules(t *testing.T) {
	many := map[string]string{}
	for i := range 65 {
		many[fmt.Sprint("k", i)] = ""
	}
	for _, test := range []struct {
		what        string
		groups      []string
		labels      map[string]string
		field, rule string
	}{
		{"group twice", []string{"base", "web", "base"}, nil, "groups[2]", "group base is named twice"},
		{"group of no name", []string{""}, nil, "groups[0]", "a group name must match [a-z0-9][a-z0-9_.-]*"},
		{"group in upper case", []string{"a", "Web"}, nil, "groups[1]", `"Web": a group name must match`},
		{"group with a slash", []string{"a/b"}, nil, "groups[0]", "a group name must match"},
		{"group ..", []string{".."}, nil, "groups[0]", "a group name must match"},
		{"group of 65 bytes", []string{strings.Repeat("g", 65)}, nil, "groups[0]", "at most 64 bytes"},
		{"33 groups", names(33), nil, "groups", "at most 32 groups, are 33"},
		{"label without a key", nil, map[string]string{"": "v"}, `labels[""]`, "a label's key must match"},
		{"label with = in its key", nil, map[string]string{"a=b": "v"}, `labels["a=b"]`, "a label's key must match"},
		{"label with a space in its key", nil, map[string]string{"a b": "v"}, `labels["a b"]`, "a label's key must match"},
		{"label /a", nil, map[string]string{"/a": "v"}, `labels["/a"]`, "a label's key must match"},
		{"label key of 64 bytes", nil, map[string]string{strings.Repeat("k", 64): "v"}, "labels[" + strings.Repeat("k", 64) + "]", "at most 63 bytes"},
		{"label with / in its value", nil, map[string]string{"k": "a/b"}, "labels[k]", `"a/b": a label's value must match`},
		{"label with a newline in its value", nil, map[string]string{"k": "v\n"}, "labels[k]", "a label's value must match"},
		{"label value of 129 bytes", nil, map[string]string{"k": strings.Repeat("v", 129)}, "labels[k]", "at most 128 bytes"},
		{"65 labels", nil, many, "labels", "at most 64 labels, are 65"},
	} {
		n := Node{Certname: "web01", Groups: test.groups, Labels: test.labels}
		expectViolation(t, test.what, n.Validate(), test.field, test.rule)
	}
}

func TestGroupRules(t *testing.T) {
	for _, test := range []struct {
		what        string
		group       Group
		field, rule string
	}{
		{"name", Group{Name: "../x"}, "name", "a group name must match"},
		{"no name", Group{}, "name", "a group name must match"},
		{"its own parent", Group{Name: "a", Parents: []string{"b", "a"}}, "parents", `group "a" can't inherit itself`},
		{"parent twice", Group{Name: "a", Parents: []string{"b", "b"}}, "parents[1]", "group b is named twice"},
		{"parent's name", Group{Name: "a", Parents: []string{"B"}}, "parents[0]", "a group name must match"},
		{"description", Group{Name: "a", Description: strings.Repeat("x", 1025)}, "description", "at most 1024 bytes, is 1025"},
		{"line in description", Group{Name: "a", Description: "x\nname  fake"}, "description", "without control characters"},
		{"NUL in description", Group{Name: "a", Description: "\x00"}, "description", "without control characters"},
		{"class", Group{Name: "a", Classification: classes("::ntp").Classification}, `classes["::ntp"]`, "must be a class name"},
	} {
		expectViolation(t, test.what, test.group.Validate(), test.field, test.rule)
	}
	if err := CheckGroupName("group", "Web"); err == nil || !strings.HasPrefix(err.Error(), "group: ") {
		t.Errorf("CheckGroupName: %v", err)
	}
	if err := CheckGroupName("group", "web"); err != nil {
		t.Error(err)
	}
}

func classes(name string) Node {
	return Node{Classification: Classification{Classes: map[string]map[string]any{name: nil}}}
}

func class(name string, v any) Node {
	return Node{Classification: Classification{Classes: map[string]map[string]any{"ntp": {name: v}}}}
}

func environment(e string) Node { return Node{Classification: Classification{Environment: e}} }

func parameter(name string, v any) Node {
	return Node{Classification: Classification{Parameters: map[string]any{name: v}}}
}

func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint("g", i)
	}
	return out
}

// nestedLists is a list in n-1 lists.
func nestedLists(n int) any {
	var v any = "x"
	for range n {
		v = []any{v}
	}
	return v
}

func nestedMaps(n int) any {
	var v any = "x"
	for range n {
		v = map[string]any{"a": v}
	}
	return v
}
