// Package foreign tests espm's network listener with other clients:
// openssl, grpcurl and Python.
package foreign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/daemon"
	"github.com/espm-project/espm/internal/setup"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/need"
	"github.com/espm-project/espm/test/testbed"
)

// site is a daemon on the network, and the files of its clients.
type site struct {
	dir, address string
	token        string
}

const network = `
network: {listen: "ADDRESS", certificate: localhost.pem, key: localhost.key}
principals:
  - {certname: control.test, role: provisioner}
`

func newSite(t *testing.T) *site {
	t.Helper()
	dir := testbed.Dir(t)
	made, err := setup.Init(t.Context(), setup.InitOptions{Dir: dir, Certname: "puppet.test", CAKey: "ec-p256"})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: dir}
	stop := s.start(t, made.Config)
	conn, err := grpc.NewClient(made.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	nodes := espmv1.NewNodeServiceClient(conn)
	for _, name := range []string{"localhost", "control.test", "revoked.test"} {
		p, err := nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: name}}, grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
		s.write(t, name+".pem", p.GetBundle().GetCertificatePem())
		s.write(t, name+".key", p.GetBundle().GetPrivateKeyPem())
	}
	revoked, err := espmv1.NewRevocationServiceClient(conn).RevokeCertificate(t.Context(), &espmv1.RevokeCertificateRequest{Certname: "revoked.test"})
	if err != nil {
		t.Fatal(err, revoked)
	}
	token, err := espmv1.NewTokenServiceClient(conn).CreateToken(t.Context(), &espmv1.CreateTokenRequest{Name: "ci", Role: espmv1.Role_ROLE_READER})
	if err != nil {
		t.Fatal(err)
	}
	s.token = token.GetSecret()
	stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	s.address = "localhost:" + port
	l.Close()
	text, err := os.ReadFile(made.Config)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "espm.yaml", append(text, strings.ReplaceAll(network, "ADDRESS", s.address)...))
	t.Cleanup(s.start(t, made.Config))
	return s
}

func (s *site) write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(s.path(name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }
func (s *site) ca() string              { return s.path("ca/ca_crt.pem") }

func (s *site) start(t *testing.T, path string) (stop func()) {
	t.Helper()
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	*c.Issue.KeyPool = 0
	ctx, cancel := context.WithCancel(context.Background())
	reader, writer := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- daemon.Run(ctx, c, writer); writer.Close() }()
	log := &bytes.Buffer{}
	serves := make(chan struct{})
	go func() {
		buf := make([]byte, 4096)
		for said := false; ; {
			n, err := reader.Read(buf)
			log.Write(buf[:n])
			if !said && bytes.Contains(log.Bytes(), []byte("espm serves")) {
				said = true
				close(serves)
			}
			if err != nil {
				return
			}
		}
	}()
	select {
	case <-serves:
	case err := <-ended:
		t.Fatalf("the daemon does not serve: %v", err)
	}
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// run runs a command for a minute at most and returns all its output.
func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	cmd.Stdin = strings.NewReader("")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestOpenSSL(t *testing.T) {
	need.Program(t, "openssl")
	s := newSite(t)
	client := func(more ...string) (string, error) {
		args := []string{"s_client", "-connect", s.address, "-servername", "localhost", "-alpn", "h2", "-CAfile", s.ca(), "-verify_return_error", "-verify_hostname", "localhost"}
		return run(t, "openssl", append(args, more...)...)
	}
	for name, c := range map[string]struct {
		args  []string
		works bool
		says  string
	}{
		"TLS 1.3":            {nil, true, "TLSv1.3"},
		"with a certificate": {[]string{"-cert", s.path("control.test.pem"), "-key", s.path("control.test.key")}, true, "ALPN protocol: h2"},
		"TLS 1.2":            {[]string{"-tls1_2"}, false, "alert protocol version"},
	} {
		out, err := client(c.args...)
		if (err == nil) != c.works || !strings.Contains(out, c.says) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	// The refusal comes after openssl's part of the handshake, so the client must read to see it.
	out, _ := client("-cert", s.path("revoked.test.pem"), "-key", s.path("revoked.test.key"), "-ign_eof")
	if !strings.Contains(out, "alert bad certificate") || strings.Contains(strings.ToLower(out), "revoked by") {
		t.Errorf("a revoked certificate:\n%s", out)
	}
}

func TestGRPCurl(t *testing.T) {
	if testing.Short() {
		t.Skip("-short leaves out building grpcurl")
	}
	bin := filepath.Join(t.TempDir(), "grpcurl")
	build := exec.CommandContext(t.Context(), "go", "build", "-modfile=tools/go.mod", "-o", bin, "github.com/fullstorydev/grpcurl/cmd/grpcurl")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	s := newSite(t)
	protos := []string{"-cacert", s.ca(), "-import-path", "../../proto", "-proto", "espm/v1/node.proto"}
	certificate := func(name string) []string {
		return append([]string{"-cert", s.path(name + ".pem"), "-key", s.path(name + ".key")}, protos...)
	}
	bearer := func(token string) []string {
		return append([]string{"-H", "authorization: Bearer " + token}, protos...)
	}
	call := func(flags []string, body, method string) (string, error) {
		return run(t, bin, append(flags, "-d", body, s.address, "espm.v1.NodeService/"+method)...)
	}
	out, err := call(certificate("control.test"), `{"node": {"certname": "web1.test"}}`, "ProvisionNode")
	var answer struct {
		Bundle struct {
			PrivateKeyPem []byte `json:"privateKeyPem"`
		}
	}
	if err != nil || json.Unmarshal([]byte(out), &answer) != nil || !bytes.Contains(answer.Bundle.PrivateKeyPem, []byte("PRIVATE KEY")) {
		t.Fatalf("%v\n%.300s", err, out)
	}
	out, err = call(bearer(s.token), `{"certname": "web1.test"}`, "GetNode")
	if err != nil || !strings.Contains(out, "NODE_STATE_PROVISIONED") {
		t.Errorf("%v\n%s", err, out)
	}
	for name, c := range map[string]struct {
		flags []string
		says  string
	}{
		"a reader":    {bearer(s.token), "Code: PermissionDenied"},
		"wrong token": {bearer("espm_x"), "Code: Unauthenticated\n  Message: not authenticated"},
		"nothing":     {protos, "Code: Unauthenticated\n  Message: not authenticated"},
		"revoked":     {certificate("revoked.test"), "bad certificate"},
		"plain text":  {append([]string{"-plaintext"}, protos[2:]...), "Failed to dial"},
	} {
		out, err := call(append([]string{"-connect-timeout", "5"}, c.flags...), `{"certname": "web1.test"}`, "TerminateNode")
		if err == nil || !strings.Contains(out, c.says) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if out, err := run(t, bin, "-cacert", s.ca(), "-H", "authorization: Bearer "+s.token, s.address, "list"); err != nil || !strings.Contains(out, "espm.v1.TokenService") {
		t.Errorf("reflection for a reader: %v\n%s", err, out)
	}
	if out, err := run(t, bin, "-cacert", s.ca(), s.address, "list"); err == nil || strings.Contains(out, "espm.v1") {
		t.Errorf("reflection for a stranger: %v\n%s", err, out)
	}
}

// Debian 12's compiler is older than some options of .proto files. What it makes has to work.
func TestPython(t *testing.T) {
	python := need.Program(t, "/usr/bin/python3") // Debian's, whatever else is in PATH
	protos, err := filepath.Glob("../../proto/espm/v1/*.proto")
	if err != nil || len(protos) == 0 {
		t.Fatal(err, protos)
	}
	dir := t.TempDir()
	generate := append([]string{"-m", "grpc_tools.protoc", "-I", "../../proto", "--python_out", dir, "--grpc_python_out", dir}, protos...)
	if out, err := run(t, python, generate...); err != nil {
		if strings.Contains(out, "No module named") {
			need.This(t, errors.New("python3-grpc-tools is not installed"))
		}
		t.Fatalf("%v\n%s", err, out)
	}
	s := newSite(t)
	program := filepath.Join(dir, "client.py")
	const client = `
import sys, grpc
from espm.v1 import node_pb2, node_pb2_grpc
address, ca, token = sys.argv[1:]
tls = grpc.ssl_channel_credentials(open(ca, "rb").read())
bearer = grpc.access_token_call_credentials(token)
with grpc.secure_channel(address, grpc.composite_channel_credentials(tls, bearer)) as channel:
    answer = node_pb2_grpc.NodeServiceStub(channel).GetNode(node_pb2.GetNodeRequest(certname="control.test"), timeout=60)
    print(node_pb2.NodeState.Name(answer.node.state))
`
	if err := os.WriteFile(program, []byte(client), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, python, program, s.address, s.ca(), s.token)
	if err != nil || strings.TrimSpace(out) != "NODE_STATE_PROVISIONED" {
		t.Errorf("%v\n%s", err, out)
	}
}
