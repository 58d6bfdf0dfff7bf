// Package secrets searches for private keys and sensitive values in all that a
// daemon writes while it works, fails and panics, at the most detailed log level.
package secrets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/enc/encclient"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/health"
	"github.com/espm-project/espm/test/testbed"
)

// site is a daemon and the folder with all its files.
type site struct {
	dir    string
	cmd    *exec.Cmd
	conn   *grpc.ClientConn
	keys   *search // of nodes; may be nowhere
	caKey  *search // may be only in its own file
	values *search // may be only in the store
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{dir: testbed.Dir(t), keys: newSearch(), caKey: newSearch(), values: newSearch()}
	if err := directory.Create(s.path("ca"), directory.CreateOptions{Host: "puppet.test", Key: ca.ECP256}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.path("ca", "ca_key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s.caKey.addKey(t, "the CA's key", text)
	s.conn, err = grpc.NewClient("unix://"+s.path("espm.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	return s
}

func (s *site) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// start runs a command as the daemon. All its output goes to one file.
func (s *site) start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	log, err := os.OpenFile(s.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.cmd = cmd
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(s.path("log"))
			t.Logf("%.10000s", text)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := health.Serves(ctx, s.conn); err != nil {
		t.Fatal("the daemon does not serve: ", err)
	}
}

// end stops the daemon.
func (s *site) end(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal("the daemon has ended by itself: ", err)
	}
	if err := s.cmd.Wait(); err != nil && sig == syscall.SIGTERM {
		t.Error("an orderly stop: ", err)
	}
}

// written returns all that can be read of the daemon: its files, and the
// kernel's files about its process.
func (s *site) written(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			all[path], err = os.ReadFile(path)
			all[path+" (its name)"] = []byte(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.cmd.ProcessState != nil {
		return all // the daemon has ended, and its pid may belong to another process
	}
	proc := fmt.Sprintf("/proc/%d", s.cmd.Process.Pid)
	for _, name := range []string{"environ", "cmdline", "comm", "status", "maps"} {
		data, err := os.ReadFile(filepath.Join(proc, name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = data
	}
	open, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range open {
		target, data, err := regular(filepath.Join(proc, "fd", fd.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[target] = append(all[target], data...)
	}
	return all
}

// regular reads the file of another process's descriptor, even a deleted
// file. It returns nothing if the descriptor is no file, or closed meanwhile.
func regular(path string) (target string, data []byte, err error) {
	target, err = os.Readlink(path)
	if err == nil {
		var f *os.File
		f, err = os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			defer f.Close()
			if info, serr := f.Stat(); serr != nil || !info.Mode().IsRegular() {
				return target, nil, serr
			}
			data, err = io.ReadAll(f)
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENXIO) { // ENXIO: a socket
		err = nil
	}
	return target, data, err
}

// clean checks that each secret is only where it may be.
func (s *site) clean(t *testing.T, when string) {
	t.Helper()
	all := s.written(t)
	for path, data := range all {
		for _, found := range []string{
			s.keys.find(data),
			unless(path == s.path("ca", "ca_key.pem"), s.caKey, data),
			unless(path == s.path("espm.db"), s.values, data),
		} {
			if found != "" {
				t.Errorf("%s: %s holds %s", when, path, found)
			}
		}
	}
	for path, belongs := range map[string]*search{s.path("ca", "ca_key.pem"): s.caKey, s.path("espm.db"): s.values} {
		if len(belongs.windows) > 0 && belongs.find(all[path]) == "" {
			t.Errorf("%s: %s does not hold what belongs there: the search is blind", when, path)
		}
	}
}

func unless(exempt bool, s *search, data []byte) string {
	if exempt {
		return ""
	}
	return s.find(data)
}

// logged checks that the log has a text, as proof that the test provoked the event.
func (s *site) logged(t *testing.T, texts ...string) {
	t.Helper()
	log, err := os.ReadFile(s.path("log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		if !bytes.Contains(log, []byte(text)) {
			t.Errorf("the log does not say %q", text)
		}
	}
}

// quiet checks that a call succeeds, and that its answer has no sensitive value.
func (s *site) quiet(t *testing.T, m proto.Message, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if found := s.values.find([]byte(protojson.Format(m))); found != "" {
		t.Errorf("a %T holds %s", m, found)
	}
}

// refused checks that a call fails, and that its error has no secret.
func (s *site) refused(t *testing.T, err error, says string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want %q", err, says)
		return
	}
	if found := s.values.find([]byte(err.Error())); found != "" {
		t.Errorf("the error holds %s", found)
	}
}

const (
	password = "correct horse battery staple"
	token    = "tok-8f14e45fceea167a5a36dedd4bea2543"
)

func classification() *espmv1.Classification {
	return &espmv1.Classification{
		Classes: map[string]*espmv1.ClassParameters{"mysql": {Parameters: map[string]*structpb.Value{"root_password": structpb.NewStringValue(password)}}},
		Parameters: map[string]*structpb.Value{"token": structpb.NewStructValue(&structpb.Struct{
			Fields: map[string]*structpb.Value{token: structpb.NewStringValue(token)},
		})},
		Sensitive: []string{"classes[mysql].root_password", "parameters[token]"},
	}
}

func (s *site) provision(t *testing.T, name, algorithm string) *espmv1.ProvisionNodeResponse {
	t.Helper()
	req := &espmv1.ProvisionNodeRequest{
		Node:        &espmv1.Node{Certname: name, Classification: classification(), Groups: []string{"db"}},
		Certificate: &espmv1.CertificateSpec{KeyAlgorithm: algorithm}, RequestId: "r-" + name,
	}
	nodes := espmv1.NewNodeServiceClient(s.conn)
	resp, err := nodes.ProvisionNode(t.Context(), req)
	s.quiet(t, resp, err)
	s.keys.addKey(t, "the key of "+name, resp.GetBundle().GetPrivateKeyPem())
	again, err := nodes.ProvisionNode(t.Context(), req)
	if err != nil || !bytes.Equal(again.GetBundle().GetPrivateKeyPem(), resp.GetBundle().GetPrivateKeyPem()) {
		t.Errorf("the retry got another key: %v", err)
	}
	return resp
}

// provoke makes calls fail whose requests have sensitive values.
func (s *site) provoke(t *testing.T, made *espmv1.Node) {
	t.Helper()
	ctx := t.Context()
	nodes, groups := espmv1.NewNodeServiceClient(s.conn), espmv1.NewGroupServiceClient(s.conn)
	register := func(spoil func(*espmv1.Node), id string) error {
		n := &espmv1.Node{Certname: "bad.test", Classification: classification()}
		spoil(n)
		_, err := nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: n, RequestId: id})
		return err
	}
	s.refused(t, register(func(n *espmv1.Node) {}, "r-"+made.GetCertname()), "other content")
	s.refused(t, register(func(n *espmv1.Node) { n.Certname = made.GetCertname() }, ""), "node exists")
	s.refused(t, register(func(n *espmv1.Node) { n.Groups = []string{"none"} }, ""), "group not found")
	secret := func(v *structpb.Value) func(n *espmv1.Node) {
		return func(n *espmv1.Node) { n.Classification.Parameters["token"].GetStructValue().Fields[token] = v }
	}
	s.refused(t, register(secret(structpb.NewStringValue(token+"\x00")), ""), "which is not told")
	s.refused(t, register(secret(structpb.NewNumberValue(1<<60)), ""), "which is not told")
	s.refused(t, register(secret(structpb.NewStringValue(strings.Repeat(password, 40_000))), ""), "characters as YAML")
	_, err := nodes.UpdateNode(ctx, &espmv1.UpdateNodeRequest{Node: made, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"groups", "classification.sensitive"}}, ValidateOnly: true})
	if err != nil {
		t.Error(err)
	}
	made = proto.CloneOf(made)
	made.Classification.Sensitive = nil
	_, err = nodes.UpdateNode(ctx, &espmv1.UpdateNodeRequest{Node: made, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"classification.sensitive"}}})
	s.refused(t, err, "would take the mark off")
	for _, value := range []string{password, password + token} {
		c := classification()
		c.Classes, c.Sensitive = nil, []string{"parameters[token]"}
		c.Parameters["token"] = structpb.NewStringValue(value)
		_, err := groups.CreateGroup(ctx, &espmv1.CreateGroupRequest{Group: &espmv1.Group{Name: fmt.Sprintf("g%d", len(value)), Classification: c}})
		if err != nil {
			t.Fatal(err)
		}
	}
	clash := []string{fmt.Sprintf("g%d", len(password)), fmt.Sprintf("g%d", len(password+token))}
	_, err = nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: "clash.test", Groups: clash}})
	s.refused(t, err, "set parameters[token] to different values")
}

// show makes all calls that return a classification.
func (s *site) show(t *testing.T, name string) {
	t.Helper()
	ctx := t.Context()
	nodes, groups := espmv1.NewNodeServiceClient(s.conn), espmv1.NewGroupServiceClient(s.conn)
	n, err := nodes.GetNode(ctx, &espmv1.GetNodeRequest{Certname: name})
	s.quiet(t, n, err)
	all, err := nodes.ListNodes(ctx, &espmv1.ListNodesRequest{})
	s.quiet(t, all, err)
	g, err := groups.ListGroups(ctx, &espmv1.ListGroupsRequest{})
	s.quiet(t, g, err)
	c, err := espmv1.NewClassifierServiceClient(s.conn).ClassifyNode(ctx, &espmv1.ClassifyNodeRequest{Certname: name})
	s.quiet(t, c, err)
	a := encclient.Client{Socket: s.path("enc.sock"), DB: s.path("espm.db")}.Ask(name, time.Now().Add(encclient.Deadline))
	if s.values.find([]byte(a.Text)) == "" {
		t.Errorf("the ENC does not tell: %s", a.Text)
	}
}

// bearers makes a token, gives it another text, and calls with both, and with one that is none.
func (s *site) bearers(t *testing.T) {
	t.Helper()
	tokens := espmv1.NewTokenServiceClient(s.conn)
	made, err := tokens.CreateToken(t.Context(), &espmv1.CreateTokenRequest{Name: "ci", Role: espmv1.Role_ROLE_READER})
	if err != nil {
		t.Fatal(err)
	}
	s.keys.add("a token", []byte(made.GetSecret()))
	list := func(text string) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+text)
		_, err := espmv1.NewNodeServiceClient(s.conn).ListNodes(ctx, &espmv1.ListNodesRequest{})
		return err
	}
	if err := list(made.GetSecret()); err != nil {
		t.Error(err)
	}
	next, err := tokens.RotateToken(t.Context(), &espmv1.RotateTokenRequest{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	s.keys.add("a rotated token", []byte(next.GetSecret()))
	wrong := next.GetSecret()[:len(next.GetSecret())-4] + "AAAA"
	s.keys.add("a wrong token", []byte(wrong))
	for _, text := range []string{made.GetSecret(), wrong} {
		if err := list(text); status.Code(err) != codes.Unauthenticated {
			t.Errorf("got %v", err)
		}
	}
}

func TestNothingSecretIsWritten(t *testing.T) {
	s := newSite(t)
	bin := filepath.Join(testbed.Build(t, "cmd/espm"), "espm")
	config := `store: {path: espm.db}
listen: unix://espm.sock
enc: {socket: enc.sock}
authority: {directory: {path: ca, publish: [crl.pem]}}
puppet: {server: puppet.test}
certificates: {key_pool: 1}
log: {level: trace, format: json}
`
	if err := os.WriteFile(s.path("espm.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s.values.add("the password", []byte(password))
	s.values.add("the token", []byte(token))
	s.start(t, exec.Command(bin, "serve", "--config", "espm.yaml"))
	if _, err := espmv1.NewGroupServiceClient(s.conn).CreateGroup(t.Context(), &espmv1.CreateGroupRequest{Group: &espmv1.Group{Name: "db", Classification: classification()}}); err != nil {
		t.Fatal(err)
	}
	var made *espmv1.Node
	for _, algorithm := range ca.KeyAlgorithms() {
		made = s.provision(t, string(algorithm)+".test", string(algorithm)).GetNode()
	}
	s.bearers(t)
	s.show(t, made.GetCertname())
	s.provoke(t, made)
	s.logged(t, "a call was refused", "certificate issued")
	s.clean(t, "while it runs")
	if _, err := espmv1.NewNodeServiceClient(s.conn).TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{Certname: made.GetCertname()}); err != nil {
		t.Fatal(err)
	}
	s.end(t, syscall.SIGTERM)
	s.clean(t, "after a stop")
	s.start(t, exec.Command(bin, "serve", "--config", "espm.yaml"))
	s.provision(t, "late.test", "")
	s.end(t, syscall.SIGQUIT)
	s.logged(t, "SIGQUIT: quit", "goroutine ")
	s.clean(t, "after a stack dump")
}
