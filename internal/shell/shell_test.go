package shell

import (
	"os/exec"
	"testing"
)

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"/a/b-c_1.pem":      "/a/b-c_1.pem",
		"user@host:1.0+deb": "user@host:1.0+deb",
		"/a b":              "'/a b'",
		"/it's":             `'/it'\''s'`,
		"":                  "''",
		"$(x)":              "'$(x)'",
		"a=b":               "'a=b'",
		"~root":             "'~root'",
		"a\nb":              "'a\nb'",
		"é":                 "'é'",
	} {
		got := Quote(in)
		if got != want {
			t.Errorf("%q: %s", in, got)
		}
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+got).Output()
		if err != nil || string(out) != in {
			t.Errorf("%q: a shell takes %s for %q, %v", in, got, out, err)
		}
	}
}
