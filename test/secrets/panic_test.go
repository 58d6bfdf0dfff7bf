package secrets

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/revoke"
	"github.com/espm-project/espm/internal/rpc"
	"github.com/espm-project/espm/internal/secret"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// The test binary runs itself as a daemon whose parts panic.
const childDir = "ESPM_SECRETS_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := child(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// child is wired like the daemon.
func child(dir string) error {
	log := logrus.New()
	log.SetLevel(logrus.TraceLevel)
	engine, err := bolt.Open(dir+"/espm.db", bolt.Options{})
	if err != nil {
		return err
	}
	kept, err := store.New(context.Background(), engine)
	if err != nil {
		return err
	}
	authority, err := directory.Open(dir+"/ca", directory.Options{Log: log})
	if err != nil {
		return err
	}
	blasting := &blasting{Authority: authority, told: os.NewFile(3, "told")}
	queue := revoke.New(kept, blasting, time.Now, log)
	r := registry.New(registry.Options{
		Store: kept, Authority: blasting, Signed: blasting, Keys: blasting, Revocations: queue,
		Puppet: bootstrap.Server{Name: "puppet.test", Port: 8140}, Algorithm: ca.ECP256, Now: time.Now, Log: log,
	})
	ctx := context.Background()
	go queue.Run(ctx)
	go r.Run(ctx)
	l, err := net.Listen("unix", dir+"/espm.sock")
	if err != nil {
		return err
	}
	local, err := auth.NewLocal("")
	if err != nil {
		return err
	}
	tokens, err := auth.NewTokens(ctx, kept, kept, time.Now, log)
	if err != nil {
		return err
	}
	lines := audit.New(kept, audit.Options{Now: time.Now, Log: log})
	gate := auth.NewGate(auth.GateOptions{Local: local, Tokens: tokens, Limits: auth.NewLimits(time.Now), Refusals: lines, Now: time.Now, Log: log})
	go lines.Run(ctx)
	server := rpc.NewServer(ctx, rpc.Options{
		Registry: r, Gate: gate, Tokens: tokens, Audit: lines, Limits: rpc.DefaultLimits, Now: time.Now, Log: log,
	})
	return server.Serve(rpc.Listen(l, rpc.DefaultLimits, log))
}

// blasting generates keys, sends them to the test, and panics with a key in the
// value. The name of the node selects how.
type blasting struct {
	*directory.Authority
	told *os.File // a pipe, so that no key is on the disk
	last []byte
}

func (b *blasting) NewKey(_ context.Context, alg ca.KeyAlgorithm) (crypto.Signer, error) {
	key, err := ca.GenerateKey(alg)
	if err != nil {
		return nil, err
	}
	if b.last, err = ca.MarshalKeyPEM(key); err != nil {
		return nil, err
	}
	if _, err := b.told.Write(b.last); err != nil {
		return nil, err
	}
	return key, nil
}

func (b *blasting) Sign(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
	block, _ := pem.Decode(b.last)
	held := struct{ text secret.Text }{secret.New(b.last)}
	switch name := string(r.Certname); {
	case strings.HasPrefix(name, "pem."):
		panic(string(b.last))
	case strings.HasPrefix(name, "der."):
		panic(fmt.Errorf("%x", block.Bytes))
	case strings.HasPrefix(name, "key."):
		panic(r.Key)
	case strings.HasPrefix(name, "error."):
		return nil, fmt.Errorf("can't sign %v %+v %#v, with %v %+v %#v", r, r, r, held, held, held)
	}
	return b.Authority.Sign(ctx, r)
}

func (b *blasting) Trust(ctx context.Context) (ca.Trust, error) {
	trust, err := b.Authority.Trust(ctx)
	if b.last != nil {
		panic(fmt.Sprintf("the last key was %s", b.last))
	}
	return trust, err
}

// A panic's value, and an error that prints its subject, may have a key.
func TestPanicsTellNoSecret(t *testing.T) {
	s := newSite(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), childDir+"="+s.dir)
	cmd.ExtraFiles = []*os.File{write}
	s.start(t, cmd)
	write.Close()
	nodes := espmv1.NewNodeServiceClient(s.conn)
	for _, id := range []string{"", "r"} {
		for _, name := range []string{"pem.test", "der.test", "key.test", "error.test", "trust.test"} {
			for _, algorithm := range []ca.KeyAlgorithm{ca.ECP256, ca.RSA2048} {
				req := &espmv1.ProvisionNodeRequest{
					Node:        &espmv1.Node{Certname: name + "." + string(algorithm) + id, Classification: classification()},
					Certificate: &espmv1.CertificateSpec{KeyAlgorithm: string(algorithm)},
				}
				if id != "" {
					req.RequestId = id + req.GetNode().GetCertname()
				}
				_, err := nodes.ProvisionNode(t.Context(), req)
				s.keys.addKey(t, "the key of "+req.GetNode().GetCertname(), nextKey(t, read))
				if code := status.Code(err); code != codes.Internal && code != codes.Unknown {
					t.Errorf("%s: got %v, want an error of the server's own", req.GetNode().GetCertname(), err)
				}
				if found := s.keys.find([]byte(fmt.Sprint(err))); found != "" {
					t.Errorf("the error holds %s", found)
				}
			}
		}
	}
	if _, err := espmv1.NewCertificateServiceClient(s.conn).GetTrustBundle(t.Context(), &espmv1.GetTrustBundleRequest{}); status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
	s.values.add("the password", []byte(password))
	s.values.add("the token", []byte(token))
	s.logged(t, "a call panicked", "issuing a certificate panicked", "can't sign {", "panic_test.go")
	s.clean(t, "after panics")
	s.end(t, syscall.SIGQUIT)
	s.clean(t, "after a stack dump")
}

// nextKey reads a key that the child made.
func nextKey(t *testing.T, from *os.File) []byte {
	t.Helper()
	if err := from.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var text []byte
	for buf := make([]byte, 8192); !bytes.Contains(text, []byte("-----END ")); {
		n, err := from.Read(buf)
		if err != nil {
			t.Fatal("no key was made: ", err)
		}
		text = append(text, buf[:n]...)
	}
	return text
}
