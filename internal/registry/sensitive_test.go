package registry_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

func secretive(name node.Certname, token string) node.Node {
	return node.Node{Certname: name, Classification: node.Classification{
		Parameters: map[string]any{"token": token, "role": "db"}, Sensitive: []string{"parameters[token]"},
	}}
}

// A request's hash stays for a month after its node: from that of a short
// secret the secret could be guessed.
func TestRequestHashHoldsNoSecret(t *testing.T) {
	f := newFixture(t)
	ctx := self(t)
	hash := func(name node.Certname, token, id string) string {
		t.Helper()
		if _, err := f.Register(ctx, secretive(name, token), id, false); err != nil {
			t.Fatal(err)
		}
		r, found, err := f.store.Request(ctx, node.Request{ID: id, Principal: "espm"}.Key())
		if err != nil || !found {
			t.Fatal("no request: ", err)
		}
		return r.Hash
	}
	first := hash("db1.test", "hunter2", "r1")
	if _, err := f.Terminate(ctx, registry.TerminateRequest{Certname: "db1.test"}, 0, false); err != nil {
		t.Fatal(err)
	}
	if again := hash("db1.test", "hunter3", "r2"); again != first {
		t.Error("the hash depends on the secret")
	}
	// So a retry is one whatever the secret, and what came first stands.
	n, err := f.Register(ctx, secretive("db1.test", "hunter4"), "r2", false)
	if err != nil || n.Classification.Parameters["token"] != "hunter3" {
		t.Errorf("got %v, %v", n, err)
	}
	other := secretive("db1.test", "hunter3")
	other.Classification.Sensitive = nil
	if _, err := f.Register(ctx, other, "r2", false); !errors.Is(err, node.ErrRequestReused) {
		t.Errorf("without the mark: got %v", err)
	}
	other = secretive("db1.test", "hunter3")
	other.Classification.Parameters["role"] = "web"
	if _, err := f.Register(ctx, other, "r2", false); !errors.Is(err, node.ErrRequestReused) || strings.Contains(err.Error(), "hunter") {
		t.Errorf("with another role: got %v", err)
	}
}

// Nobody asks for a terminated node's secrets any more.
func TestTombstoneHoldsNoSecret(t *testing.T) {
	f := newFixture(t)
	n, err := f.Register(self(t), secretive("db1.test", "hunter2"), "", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Terminate(self(t), registry.TerminateRequest{Certname: n.Certname}, 0, false); err != nil {
		t.Fatal(err)
	}
	dead, err := f.store.Tombstone(self(t), n.Certname, n.UID)
	if err != nil || dead.Classification.Parameters["token"] != node.Placeholder || dead.Classification.Parameters["role"] != "db" {
		t.Errorf("got %v, %v", dead.Classification, err)
	}
}
