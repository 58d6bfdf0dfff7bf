package node

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func secretive() Classification {
	return Classification{
		Classes:    map[string]map[string]any{"mysql": {"root_password": "hunter2", "port": "3306"}, "motd": nil},
		Parameters: map[string]any{"token": map[string]any{"key": "hunter2"}, "role": "db"},
		Sensitive:  []string{"classes[mysql].root_password", "parameters[token]"},
	}
}

func TestSettings(t *testing.T) {
	for text, want := range map[string]Setting{
		"classes[mysql].root_password": {"mysql", "root_password"},
		"classes[a::b].c":              {"a::b", "c"},
		"parameters[token]":            {"", "token"},
	} {
		if got, ok := ParseSetting(text); !ok || got != want || got.String() != text {
			t.Errorf("%s: got %v, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "environment", "classes[mysql]", "classes[mysql].", "classes[].a", "parameters[]", "parameters[a", "parameters.a", "token"} {
		if got, ok := ParseSetting(text); ok {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func TestRedacted(t *testing.T) {
	c := secretive()
	want := Classification{
		Classes:    map[string]map[string]any{"mysql": {"root_password": Placeholder, "port": "3306"}, "motd": nil},
		Parameters: map[string]any{"token": Placeholder, "role": "db"},
		Sensitive:  c.Sensitive,
	}
	if got := c.Redacted(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	if !reflect.DeepEqual(c, secretive()) {
		t.Error("the classification itself was changed")
	}
	if got := (Classification{Sensitive: []string{"parameters[gone]"}}).Redacted(); got.Parameters != nil {
		t.Errorf("a value was made up: %v", got)
	}
}

func TestPrintsRedacted(t *testing.T) {
	n := Node{Certname: "web01", Classification: secretive()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{n, &n, n.Classification, &n.Classification, []Node{n}, Group{Classification: secretive()}} {
			text := fmt.Sprintf(verb, v)
			for _, leak := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), fmt.Sprint([]byte("hunter2"))} {
				if strings.Contains(text, leak) {
					t.Errorf("%s of a %T shows %s: %s", verb, v, leak, text)
				}
			}
		}
	}
	if text := fmt.Sprintf("%+v", n); !strings.Contains(text, "3306") || !strings.Contains(text, Placeholder) {
		t.Errorf("got %s", text)
	}
}

func TestSensitiveRules(t *testing.T) {
	deep := any("hunter2")
	for range maxDepth {
		deep = map[string]any{"hunter3": deep}
	}
	for _, c := range []struct {
		what, field, rule string
		spoil             func(*Classification)
	}{
		{"not set", "sensitive", `"parameters[none]": must name a value that is set here`, func(c *Classification) { c.Sensitive = []string{"parameters[none]"} }},
		{"a class", "sensitive", `"classes[mysql]": must name a value`, func(c *Classification) { c.Sensitive = []string{"classes[mysql]"} }},
		{"twice", "sensitive", `"parameters[token]" is named twice`, func(c *Classification) { c.Sensitive = append(c.Sensitive, "parameters[token]") }},
		{"placeholder, marked", "parameters[token]", "there is none: give the value", func(c *Classification) { c.Parameters["token"] = Placeholder }},
		{"placeholder", "classes[mysql].port", "there is none: give the value", func(c *Classification) { c.Classes["mysql"]["port"] = Placeholder }},
		{"bad inside", "parameters[token]", "breaks a rule of values, which is not told", func(c *Classification) { c.Parameters["token"] = deep }},
		{"bad key inside", "parameters[token]", "which is not told", func(c *Classification) { c.Parameters["token"] = map[string]any{"hunter2\x00": 1} }},
	} {
		n := Node{Certname: "web01", Classification: secretive()}
		c.spoil(&n.Classification)
		err := n.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), c.field+": ") || !strings.Contains(err.Error(), c.rule) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: got %v", c.what, err)
		}
	}
	n := Node{Certname: "web01", Classification: secretive()}
	n.Classification.Parameters["token"] = []any{Placeholder} // no placeholder, as nothing is redacted in parts
	if err := n.Validate(); err != nil {
		t.Error(err)
	}
}

func TestClassificationEdit(t *testing.T) {
	shown := secretive().Redacted()
	unmarked := shown
	unmarked.Sensitive = nil
	all := ClassificationEdit{Environment: true, Classes: true, Parameters: true, Sensitive: true}
	with := func(e ClassificationEdit, to Classification) ClassificationEdit { e.To = to; return e }
	for _, c := range []struct {
		what  string
		edit  ClassificationEdit
		want  func(*Classification)
		bared string
	}{
		{"nothing", ClassificationEdit{}, func(*Classification) {}, ""},
		{"what was shown is written back", with(all, shown), func(*Classification) {}, ""},
		{"one part of it", with(ClassificationEdit{Classes: true}, shown), func(*Classification) {}, ""},
		{"another value keeps the mark", with(ClassificationEdit{Parameters: true}, Classification{Parameters: map[string]any{"token": "new"}}),
			func(c *Classification) { c.Parameters = map[string]any{"token": "new"} }, ""},
		{"the mark goes with its value", ClassificationEdit{Classes: true},
			func(c *Classification) { c.Classes, c.Sensitive = nil, []string{"parameters[token]"} }, ""},
		{"another value and no mark", with(ClassificationEdit{Parameters: true, Sensitive: true},
			Classification{Parameters: map[string]any{"token": "new"}, Sensitive: []string{"classes[mysql].root_password"}}),
			func(c *Classification) {
				c.Parameters, c.Sensitive = map[string]any{"token": "new"}, []string{"classes[mysql].root_password"}
			}, ""},
		{"marks alone are taken off", ClassificationEdit{Sensitive: true},
			func(c *Classification) { c.Sensitive = nil }, "classes[mysql].root_password parameters[token]"},
		{"a mark of the part that stays", with(ClassificationEdit{Parameters: true, Sensitive: true}, Classification{}),
			func(c *Classification) { c.Parameters, c.Sensitive = nil, nil }, "classes[mysql].root_password"},
		{"the placeholder without its mark stays one, to be refused", with(all, unmarked), func(c *Classification) { *c = unmarked }, ""},
		{"the placeholder for what was not marked stays one",
			with(ClassificationEdit{Parameters: true, Sensitive: true}, Classification{
				Parameters: map[string]any{"token": Placeholder, "role": Placeholder},
				Sensitive:  []string{"classes[mysql].root_password", "parameters[role]", "parameters[token]"},
			}),
			func(c *Classification) {
				c.Parameters["role"] = Placeholder
				c.Sensitive = []string{"classes[mysql].root_password", "parameters[role]", "parameters[token]"}
			}, ""},
	} {
		stored, want := secretive(), secretive()
		c.want(&want)
		got, bared := c.edit.Apply(stored)
		type plain Classification
		if !reflect.DeepEqual(got, want) && !(len(got.Sensitive) == 0 && len(want.Sensitive) == 0 && fmt.Sprint(plain(got)) == fmt.Sprint(plain(want))) {
			t.Errorf("%s: got %v, want %v", c.what, plain(got), plain(want))
		}
		if strings.Join(bared, " ") != c.bared {
			t.Errorf("%s: bares %v, want %s", c.what, bared, c.bared)
		}
		if !reflect.DeepEqual(stored, secretive()) {
			t.Errorf("%s: the stored one was changed", c.what)
		}
	}
	if !reflect.DeepEqual(shown, secretive().Redacted()) {
		t.Error("an edit was changed by being applied")
	}
}
