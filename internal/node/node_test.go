package node

import (
	"errors"
	"fmt"
	"io"
	"math/big"
	"reflect"
	"strings"
	"testing"
)

// All that is wrong is told at once, in order of field, whatever the order of maps.
func TestEveryViolationIsNamed(t *testing.T) {
	n := Node{
		Certname: "Web",
		Classification: Classification{
			Environment: "No",
			Classes:     map[string]map[string]any{"::ntp": nil, "ok": {"A": nil, "b": "\x00"}},
			Parameters:  map[string]any{"facts": nil, "x": map[string]any{"<<": "\xff"}},
		},
		Groups: []string{"g", "g"},
		Labels: map[string]string{"k": " "},
	}
	want := []string{
		"certname", `classes["::ntp"]`, `classes[ok]."A"`, "classes[ok].b", "environment", "groups[1]",
		"labels[k]", "parameters[facts]", "parameters[x]", `parameters[x]."<<"`,
	}
	for range 20 {
		inv, ok := errors.AsType[*InvalidError](n.Validate())
		if !ok {
			t.Fatal("the node is accepted")
		}
		var got []string
		for _, v := range inv.Violations {
			got = append(got, v.Field)
			if v.Rule == "" {
				t.Errorf("%s names no rule", v.Field)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got %q\nwant %q", got, want)
		}
	}
}

// A client reads the error from a header of 8 KiB.
func TestViolationsAreBounded(t *testing.T) {
	bad := make([]any, 30_000)
	for i := range bad {
		bad[i] = "\xff"
	}
	n := Node{Certname: "web01", Classification: Classification{Parameters: map[string]any{"p": bad}}}
	err := n.Validate()
	if !strings.HasSuffix(err.Error(), "; ...: 29980 more rules are broken") {
		t.Errorf("got %.200q", err)
	}
	if len(err.Error()) > 8<<10 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

func TestJoin(t *testing.T) {
	a, b := Invalid("a", "rule %d", 1), Invalid("b", "rule 2")
	if err := Join(nil, nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	err := Join(nil, a, fmt.Errorf("wrapped: %w", b))
	if !errors.Is(err, ErrInvalid) || err.Error() != "a: rule 1; b: rule 2" {
		t.Errorf("of two: %v", err)
	}
	if err := Join(a, io.EOF, b); err != io.EOF {
		t.Errorf("with another error: %v", err)
	}
}

func TestConflictError(t *testing.T) {
	e := &ConflictError{Setting: "classes[ntp].servers", Groups: [2]string{"a", "b"}}
	want := `groups "a" and "b" set classes[ntp].servers to different values`
	if e.Error() != want || !errors.Is(fmt.Errorf("x: %w", e), ErrConflict) {
		t.Errorf("got %v", e)
	}
	for i := range 23 {
		e.Nodes = append(e.Nodes, Certname(fmt.Sprintf("n%02d", i)))
	}
	if got := e.Error(); !strings.HasPrefix(got, want+": affects n00, n01, ") || !strings.HasSuffix(got, ", n19 and 3 more") {
		t.Errorf("got %q", got)
	}
}

// Puppet's inventory writes 0x%04X.
func TestSerial(t *testing.T) {
	for _, test := range []struct {
		number string
		want   Serial
	}{
		{"0", "0000"},
		{"1", "0001"},
		{"255", "00FF"},
		{"65535", "FFFF"},
		{"65536", "10000"},
		{"18446744073709551615", "FFFFFFFFFFFFFFFF"},
		{"18446744073709551616", "10000000000000000"},
	} {
		n, _ := new(big.Int).SetString(test.number, 10)
		if got := SerialOf(n); got != test.want {
			t.Errorf("%s: got %q, want %q", test.number, got, test.want)
		}
		if got, ok := test.want.Int(); !ok || got.Cmp(n) != 0 {
			t.Errorf("%q: got %v, %v, want %v", test.want, got, ok, n)
		}
	}
	for _, s := range []Serial{"", "1", "00ff", "0x00FF", "000FF", "FFF", "-0001", "+0001", "00_FF", " 00FF", "00FG"} {
		if n, ok := s.Int(); ok {
			t.Errorf("%q is taken for %v", s, n)
		}
	}
}

func FuzzSerial(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		if n, ok := Serial(s).Int(); ok && (n.Sign() < 0 || SerialOf(n) != Serial(s)) {
			t.Errorf("%q is taken for %v", s, n)
		}
	})
}

func TestCloneSharesNothing(t *testing.T) {
	n := Node{
		Certname: "web01",
		Groups:   []string{"a"},
		Labels:   map[string]string{"k": "v"},
		Classification: Classification{
			Classes:    map[string]map[string]any{"ntp": nil},
			Parameters: map[string]any{"role": "web"},
		},
	}
	c := n.Clone()
	if !reflect.DeepEqual(c, n) {
		t.Fatalf("got %v", c)
	}
	c.Groups[0], c.Labels["k"], c.Classification.Parameters["role"] = "b", "w", "db"
	delete(c.Classification.Classes, "ntp")
	if n.Groups[0] != "a" || n.Labels["k"] != "v" || n.Classification.Parameters["role"] != "web" || len(n.Classification.Classes) != 1 {
		t.Errorf("the original became %v", n)
	}
}

// Spec is what two requests with one request id must have in common.
func TestSpec(t *testing.T) {
	n := Node{Certname: "web01", UID: "u", State: Issuing, Serials: []Serial{"0001"}, Requests: []string{"r"}, Revision: 7, Groups: []string{"g"}}
	if got, want := n.Spec(), (Node{Certname: "web01", Groups: []string{"g"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestRequestIDOf(t *testing.T) {
	for _, r := range []Request{{ID: "r/1"}, {ID: "r-1", Principal: "token:ci"}, {ID: "r:1", Principal: "local:some user"}} {
		if got := RequestIDOf(r.Key()); got != r.ID {
			t.Errorf("of %q: %q", r.Key(), got)
		}
	}
	if got := RequestIDOf(""); got != "" {
		t.Errorf("of none: %q", got)
	}
}
