//go:build pkcs11

package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/ca/pkcs11/softhsm"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/setup"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/testbed"
)

// A CA whose key never was outside of its token issues and revokes, waits while the token is
// away, and goes on when it is back.
func TestCAKeyInToken(t *testing.T) {
	for _, kind := range []struct {
		key          string
		intermediate bool
	}{{"ec-p256", false}, {"rsa-2048", true}} {
		t.Run(kind.key, func(t *testing.T) {
			token := softhsm.New(t)
			dir, c := trialOf(t, setup.InitOptions{CAKey: kind.key, Intermediate: kind.intermediate, CAKeyURI: token.URI("Puppet CA").String()})
			if _, err := os.Stat(filepath.Join(dir, "ca", "ca_key.pem")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("there is a key file: %v", err)
			}
			conn, stop := start(t, c)
			provision(t, conn, dir, "web1.test")
			provision(t, conn, dir, "web2.test")
			verify(t, dir, "web1.test", "OK")
			terminate(t, conn, "web1.test")
			verify(t, dir, "web1.test", "certificate revoked")
			verify(t, dir, "web2.test", "OK")

			token.Away(t)
			_, err := espmv1.NewNodeServiceClient(conn).ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "web3.test"}})
			if status.Code(err) != codes.Unavailable {
				t.Errorf("without the token: %v", err)
			}
			order := &espmv1.TerminateNodeRequest{Certname: "web2.test"}
			if _, err := espmv1.NewNodeServiceClient(conn).TerminateNode(t.Context(), order); err != nil {
				t.Errorf("a terminate does not need the token: %v", err)
			}
			token.Back(t)
			provision(t, conn, dir, "web4.test")
			terminate(t, conn, "web2.test") // the order that exists already
			verify(t, dir, "web2.test", "certificate revoked")
			verify(t, dir, "web4.test", "OK")
			if err := stop(); err != nil {
				t.Error(err)
			}

			token.Away(t)
			want := "authority: authority.directory.key: unavailable: CA key \"Puppet CA\" in token "
			if err := Run(t.Context(), c, io.Discard); err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "could not find PKCS#11 token") {
				t.Errorf("started without the token: %v", err)
			}
			token.Back(t)
			_, stop = start(t, c)
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A CA that has a key file moves into a token: the key is imported, the file goes.
func TestCAKeyMovesIntoToken(t *testing.T) {
	token := softhsm.New(t)
	dir, c := trial(t)
	conn, stop := start(t, c)
	provision(t, conn, dir, "web1.test")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "ca", "ca_key.pem")
	pkcs8 := filepath.Join(t.TempDir(), "pkcs8.pem")
	if out, err := exec.CommandContext(t.Context(), "openssl", "pkcs8", "-topk8", "-nocrypt", "-in", file, "-out", pkcs8).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	token.Import(t, pkcs8, "moved", "01")

	c.Authority.Directory.Key = token.URI("moved").String()
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c, &log) }()
	serves(t, c.Listen)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "remove it from this machine") {
		t.Errorf("no word of the file that is left:\n%s", log.String())
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	// The configuration is made anew, over the CA that stands.
	if err := os.Remove(filepath.Join(dir, "espm.yaml")); err != nil {
		t.Fatal(err)
	}
	made, err := setup.Init(t.Context(), setup.InitOptions{Dir: dir, Certname: "puppet.test", CAKeyURI: token.URI("moved").String()})
	if err != nil {
		t.Fatal(err)
	}
	if c, err = config.Load(made.Config); err != nil {
		t.Fatal(err)
	}
	conn, stop = start(t, c)
	terminate(t, conn, "web1.test")
	provision(t, conn, dir, "web2.test")
	verify(t, dir, "web2.test", "OK")
	if err := stop(); err != nil {
		t.Error(err)
	}

	other := softhsm.New(t)
	if _, err := setup.Init(t.Context(), setup.InitOptions{Dir: t.TempDir(), Certname: "puppet.test", CAKey: "ec-p256", CAKeyURI: other.URI("other").String()}); err != nil {
		t.Fatal(err)
	}
	c.Authority.Directory.Key = other.URI("other").String()
	if err := Run(t.Context(), c, io.Discard); err == nil || !strings.Contains(err.Error(), "the CA's key does not belong to") {
		t.Errorf("started with another's key: %v", err)
	}
}

func trialOf(t *testing.T, o setup.InitOptions) (string, config.Config) {
	t.Helper()
	o.Dir = testbed.Dir(t)
	o.Certname = "puppet.test"
	made, err := setup.Init(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(made.Config)
	if err != nil {
		t.Fatal(err)
	}
	*c.Issue.KeyPool = 0
	return o.Dir, c
}

// provision keeps the certificate beside the CA, where a revocation does not remove it.
func provision(t *testing.T, conn *grpc.ClientConn, dir, name string) {
	t.Helper()
	resp, err := espmv1.NewNodeServiceClient(conn).ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: name}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".pem"), resp.GetBundle().GetCertificatePem(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// terminate waits for the receipts.
func terminate(t *testing.T, conn *grpc.ClientConn, name string) {
	t.Helper()
	nodes := espmv1.NewNodeServiceClient(conn)
	resp, err := nodes.TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{Certname: name, Wait: durationpb.New(time.Minute)})
	if err != nil || len(resp.GetRevocations()) != 1 || resp.GetRevocations()[0].GetCrlNumber() == "" {
		t.Fatalf("got %v, %v; want a receipt", resp, err)
	}
}

// verify has OpenSSL look at a certificate as an agent does.
func verify(t *testing.T, dir, name, want string) {
	t.Helper()
	out, _ := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-crl_check_all",
		"-CAfile", filepath.Join(dir, "ca", "ca_crt.pem"), "-CRLfile", filepath.Join(dir, "ca", "ca_crl.pem"), filepath.Join(dir, name+".pem")).CombinedOutput()
	if !strings.Contains(string(out), want) {
		t.Errorf("%s: openssl says %s, want %s", name, out, want)
	}
}
