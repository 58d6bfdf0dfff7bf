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
	if code != 1 || !hint.MatchString(said) || !strings.Contains(said, "espm: no daemon answers at") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if code, said := run(); code != 1 || hint.MatchString(said) {
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
