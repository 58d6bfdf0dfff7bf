package cli

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/need"
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
		if c.Example == "" {
			t.Errorf("%s has no example", path)
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
		a.output = "name"
		if err := a.checkOutput(c); (err != nil) != (textOnly[path] != "" || slices.Contains(nameless, path)) {
			t.Errorf("%s -o name: %v", path, err)
		}
	}
	walk(Command())
	for _, path := range append(slices.Collect(maps.Keys(textOnly)), nameless...) {
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

// A certificate that another call is about to issue is there soon.
func TestExitCodeOfIssueInProgress(t *testing.T) {
	s, err := status.New(codes.Aborted, "x").WithDetails(&errdetails.ErrorInfo{Reason: "ISSUE_IN_PROGRESS", Domain: "espm"})
	if err != nil {
		t.Fatal(err)
	}
	if got := exitOf(s.Err()); got != exitUnavailable {
		t.Errorf("exit code %d", got)
	}
}

func TestNameOf(t *testing.T) {
	for want, m := range map[string]proto.Message{
		"web1.test": &espmv1.GetNodeResponse{Node: &espmv1.Node{Certname: "web1.test", Uid: "u"}},
		"web":       &espmv1.Group{Name: "web"},
		"ci":        &espmv1.CreateTokenResponse{Token: &espmv1.Token{Name: "ci"}, Secret: "s"},
		"1A":        &espmv1.GetCertificateResponse{Certificate: &espmv1.Certificate{Serial: "1A", Certname: "web1.test"}},
		"0198":      &espmv1.GetRevocationResponse{Revocation: &espmv1.Revocation{Id: "0198", Serial: "1A"}},
	} {
		if got := nameOf(m); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := nameOf(&espmv1.VerifyAuditResponse{}); got != "" {
		t.Errorf("an answer without a record: %q", got)
	}
}

func TestLinesAreCut(t *testing.T) {
	text := "12345\n123456\näöüäöü\n\n"
	if got, want := string(cut([]byte(text), 5)), "12345\n1234…\näöüä…\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := string(cut([]byte(text), 0)); got != text {
		t.Errorf("without a width: %q", got)
	}
}

// A table fits the terminal it is printed on; -o wide prints whole lines.
func TestTablesFitTheTerminal(t *testing.T) {
	terminal, screen := openTerminal(t, 20)
	row := func(n *espmv1.Node) []string { return []string{n.GetCertname(), "production"} }
	next := func(string) ([]*espmv1.Node, string, error) {
		return []*espmv1.Node{{Certname: "web1.example.com"}}, "", nil
	}
	for output, want := range map[string]string{
		"table": "CERTNAME          E…\r\nweb1.example.com  p…\r\n",
		"wide":  "CERTNAME          ENVIRONMENT\r\nweb1.example.com  production\r\n",
	} {
		a := &app{output: output, stdout: terminal}
		if err := list(a, []string{"CERTNAME", "ENVIRONMENT"}, row, next); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(screen, got); err != nil || string(got) != want {
			t.Errorf("-o %s: got %q, want %q (%v)", output, got, want, err)
		}
	}
}

func TestSort(t *testing.T) {
	for _, test := range []struct{ by, in, want string }{
		{"serial", "9 10 1A -", "- 10 1A 9"},
		{"serial", "9 10 -", "- 9 10"},
		{"-serial", "9 10 -", "10 9 -"},
		{"-serial", "b a c", "c b a"},
	} {
		a := &app{sort: test.by}
		next := func(token string) ([]*espmv1.Certificate, string, error) { // a page has one
			all := strings.Fields(test.in)
			at, _ := strconv.Atoi(token)
			more := strconv.Itoa(at + 1)
			if at+1 == len(all) {
				more = ""
			}
			return []*espmv1.Certificate{{Serial: all[at]}}, more, nil
		}
		certs, more, err := sorted(a, next, func(c *espmv1.Certificate) string { return c.GetSerial() })("")
		if err != nil || more != "" {
			t.Fatal(more, err)
		}
		var got []string
		for _, c := range certs {
			got = append(got, c.GetSerial())
		}
		if got := strings.Join(got, " "); got != test.want {
			t.Errorf("--sort %s of %s: %s, want %s", test.by, test.in, got, test.want)
		}
	}
}

// openTerminal returns a terminal of so many columns, and what shows on it.
func openTerminal(t *testing.T, columns uint16) (terminal, screen *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	need.This(t, err)
	t.Cleanup(func() { screen.Close() })
	fd := int(screen.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	need.This(t, err)
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	need.This(t, err)
	t.Cleanup(func() { terminal.Close() })
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: 25}); err != nil {
		t.Fatal(err)
	}
	return terminal, screen
}
