package enc

import (
	"errors"
	"strings"
	"testing"
)

func TestAsk(t *testing.T) {
	known := newWorld(t, `{"parameters": {"role": "web"}}`, nil)
	conflict := newWorld(t, `{"in": ["l", "r"]}`, map[string]string{"l": `{"environment": "a"}`, "r": `{"environment": "b"}`})
	broken := &world{err: errors.New("disk on fire")}
	command := Unknown{Policy: Command, Command: "/usr/local/bin/old-enc -v"}
	yaml := "---\nclasses: {}\nparameters:\n  \"role\": \"web\"\n"
	for _, test := range []struct {
		what    string
		source  Source
		unknown Unknown
		name    string
		want    Answer
	}{
		{"known", known, Unknown{Policy: Fail}, "web01", Answer{Status: StatusYAML, Text: yaml}},
		{"known, whatever the policy", known, Unknown{Policy: Blank}, "web01", Answer{Status: StatusYAML, Text: yaml}},
		{"known, whatever the policy", known, command, "web01", Answer{Status: StatusYAML, Text: yaml}},
		{"unknown, fail", known, Unknown{Policy: Fail}, "web02", Answer{Status: StatusFail, Text: `espm: node "web02" is not registered`}},
		{"unknown, no policy", known, Unknown{}, "web02", Answer{Status: StatusFail, Text: `espm: node "web02" is not registered`}},
		{"unknown, a policy of a newer espm", known, Unknown{Policy: "guess"}, "web02", Answer{Status: StatusFail, Text: `espm: node "web02" is not registered`}},
		{"unknown, empty", known, Unknown{Policy: Blank}, "web02", Answer{Status: StatusYAML, Text: "---\nclasses: {}\n"}},
		{"unknown, command", known, command, "web02", Answer{Status: StatusCommand, Text: "/usr/local/bin/old-enc -v"}},
		{"conflict, not unknown", conflict, Unknown{Policy: Blank}, "web01",
			Answer{Status: StatusFail, Text: `espm: classify "web01": groups "l" and "r" set environment to different values: affects web01`}},
		{"store fails, not unknown", broken, command, "web01", Answer{Status: StatusFail, Text: "espm: disk on fire"}},
		{"no certname, never asked elsewhere", known, command, "../x",
			Answer{Status: StatusFail, Text: `espm: certname: "../x": labels must not be empty (no leading, trailing or double ".")`}},
		{"no certname, never empty", known, Unknown{Policy: Blank}, "", Answer{Status: StatusFail, Text: "espm: certname: must not be empty"}},
	} {
		got, _ := Ask(t.Context(), test.source, test.unknown, test.name, false)
		if (got.Err != nil) != (got.Status == StatusFail) {
			t.Errorf("%s: %c with the error %v", test.what, got.Status, got.Err)
		}
		if got.Err = nil; got != test.want {
			t.Errorf("%s: got %c %q\nwant %c %q", test.what, got.Status, got.Text, test.want.Status, test.want.Text)
		}
	}
}

// Puppet Server shows the operator one line.
func TestReasonIsOneLine(t *testing.T) {
	for _, name := range []string{"a\nb", "a\r\nb", "\n", "A\n", "*\n", strings.Repeat("a\n", 100)} {
		a, _ := Ask(t.Context(), &world{}, Unknown{}, name, false)
		if a.Status != StatusFail || strings.ContainsAny(a.Text, "\r\n") {
			t.Errorf("%q: got %c %q", name, a.Status, a.Text)
		}
	}
}
