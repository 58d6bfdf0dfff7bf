package cli

import (
	"bytes"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/testbed"
)

// A daemon that dies in the middle of a call may have done it: whoever asked
// must learn with which request id to ask again, also if it was chosen for them.
func TestProvisionWithoutAnswer(t *testing.T) {
	dir := testbed.Dir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var server *grpc.Server
	server = grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		go server.Stop()
		<-stream.Context().Done()
		return stream.Context().Err()
	}))
	ended := make(chan error)
	go func() { ended <- server.Serve(l) }()
	run := func() (int, string) {
		var stderr bytes.Buffer
		code := Main(t.Context(), []string{"node", "provision", "a.test", "--out", filepath.Join(dir, "out"), "--address", "unix://" + dir + "/s"}, &stderr, &stderr)
		return code, stderr.String()
	}
	code, said := run()
	hint := regexp.MustCompile(`(?m)^espm: the daemon may still have done it: run the same again with --request-id [0-9a-f-]{36}$`)
	if code != exitUnavailable || !hint.MatchString(said) || !strings.Contains(said, "espm: no daemon answers at") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if code, said := run(); code != exitUnavailable || hint.MatchString(said) {
		t.Errorf("nothing was sent, and yet: exit code %d: %s", code, said)
	}
}

func TestCallExplains(t *testing.T) {
	a := &app{address: "unix:///run/espm/espm.sock"}
	for _, c := range []struct {
		err  error
		says string
	}{
		{status.Error(codes.Unavailable, "dial unix /run/espm/espm.sock: connect: permission denied"), "this user may not use unix:///run/espm/espm.sock"},
		{status.Error(codes.Unavailable, "dial unix /run/espm/espm.sock: connect: no such file or directory"), "no daemon answers at unix:///run/espm/espm.sock"},
		{status.Error(codes.NotFound, "gone"), "gone [NotFound]"},
	} {
		err := a.call(func(*grpc.ClientConn) error { return c.err })
		if err == nil || !strings.Contains(describe(err), c.says) {
			t.Errorf("got %v, want %q", err, c.says)
		}
	}
}

// A new text that can't be written is gone: whoever asked must learn that the old one is too.
func TestTokenTextThatCannotBeWritten(t *testing.T) {
	var stdout bytes.Buffer
	a := &app{output: "table", stdout: &stdout}
	resp := &espmv1.RotateTokenResponse{Secret: "espm_text", Token: &espmv1.Token{Name: "ci"}}
	err := a.showSecret(secretFile{filepath.Join(t.TempDir(), "gone", "ci.token")}, &resp.Secret, resp, resp.GetToken())
	if err == nil || !strings.Contains(err.Error(), "the token ci is lost") || !strings.Contains(err.Error(), "espm token rotate ci --out FILE") {
		t.Errorf("got %v", err)
	}
	if said := stdout.String() + err.Error(); strings.Contains(said, "espm_text") {
		t.Error(said)
	}
}
