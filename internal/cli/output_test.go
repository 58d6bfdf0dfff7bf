package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// Every command refuses an output that there is not, and those with one form refuse all others, before they do anything.
func TestEveryCommandKnowsItsOutputs(t *testing.T) {
	known := map[string]bool{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, child := range c.Commands() {
			walk(child)
		}
		path := c.CommandPath()
		known[path] = true
		if !c.Runnable() || c.HasSubCommands() || strings.HasPrefix(path, "espm completion") || path == "espm help" {
			return
		}
		a := &app{output: "xml"}
		if err := a.checkOutput(c); exitOf(err) != exitUsage {
			t.Errorf("%s -o xml: %v", path, err)
		}
		for at := c; at != nil; at = at.Parent() {
			if at.HasParent() && (at.PersistentPreRunE != nil || at.PersistentPreRun != nil) {
				t.Errorf("%s: a PersistentPreRunE of its own keeps -o from being checked", at.CommandPath())
			}
		}
		if err := c.ParseFlags([]string{"-o", "json"}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		a.output = "json"
		if err := a.checkOutput(c); (err != nil) != (textOnly[path] != "") {
			t.Errorf("%s -o json: %v", path, err)
		}
	}
	walk(Command())
	for path := range textOnly {
		if !known[path] {
			t.Errorf("there is no command %s", path)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for code, want := range map[codes.Code]int{
		codes.InvalidArgument: 2, codes.NotFound: 3, codes.AlreadyExists: 4, codes.Aborted: 4, codes.FailedPrecondition: 4,
		codes.PermissionDenied: 5, codes.Unauthenticated: 5, codes.Unavailable: 6, codes.DeadlineExceeded: 6, codes.ResourceExhausted: 6,
		codes.Internal: 1,
	} {
		if got := exitOf(status.Error(code, "x")); got != want {
			t.Errorf("%v: exit code %d, want %d", code, got, want)
		}
	}
}

func TestNameOf(t *testing.T) {
	for want, m := range map[string]interface {
		GetNode() *espmv1.Node
	}{"web1.test": &espmv1.GetNodeResponse{Node: &espmv1.Node{Certname: "web1.test", Uid: "u"}}} {
		if got := nameOf(m.(*espmv1.GetNodeResponse)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := nameOf(&espmv1.VerifyAuditResponse{}); got != "" {
		t.Errorf("an answer without a record: %q", got)
	}
}

func TestTablesFitTheTerminal(t *testing.T) {
	var out bytes.Buffer
	w := &cutter{out: &out, width: 5}
	if _, err := w.Write([]byte("12345\n123456\näöüäöü\n\nx")); err != nil {
		t.Fatal(err)
	}
	if want := "12345\n1234…\näöüä…\n\nx"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
