package registry_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// A certificate that is nobody's, whose revocation can't be ordered: the log has its serial, whatever failed.
func TestRefusedCertificateThatCantBeRevokedIsNamed(t *testing.T) {
	broken := fmt.Errorf("%w: the disk is broken", node.ErrUnavailable)
	for what, fault := range map[string]func(*faultyEngine){
		"a read": func(e *faultyEngine) {
			e.onGet(func(ctx context.Context, key string) (store.Record, error) {
				if strings.HasPrefix(key, "node/") {
					return store.Record{}, broken
				}
				return e.Engine.Get(ctx, key)
			})
		},
		"the commit": func(e *faultyEngine) {
			e.onCommit(func(context.Context, store.Batch) (int64, error) { return 0, broken })
		},
	} {
		t.Run(what+" fails", func(t *testing.T) {
			f := newFixture(t)
			log := logtest.NewLocal(f.options.Log.(*logrus.Logger))
			var serial node.Serial
			f.authority.sign = func(ctx context.Context, r ca.Request) (*x509.Certificate, error) {
				cert, err := f.signForAnother(ctx, r)
				if err == nil {
					serial = node.SerialOf(cert.SerialNumber)
				}
				fault(f.engine)
				return cert, err
			}
			if _, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "", false); err == nil {
				t.Fatal("a certificate for another key was accepted")
			}
			for _, entry := range log.AllEntries() {
				err, _ := entry.Data[logrus.ErrorKey].(error)
				if err != nil && strings.Contains(err.Error(), "serial "+string(serial)+" does not match its request and could not be ordered for revocation; revoke it by hand") {
					return
				}
			}
			t.Errorf("%s is not in the log", serial)
		})
	}
}

// Where the authority says that it issued nothing, the intent is closed at once, without another question: the obstacle
// may be in the way of that, too.
func TestWhatWasNotIssuedIsSettled(t *testing.T) {
	f := newFixture(t)
	log := logtest.NewLocal(f.options.Log.(*logrus.Logger))
	f.authority.sign = func(context.Context, ca.Request) (*x509.Certificate, error) {
		return nil, ca.NotIssued(fmt.Errorf("%w: a proxy asks for a login", node.ErrUnavailable))
	}
	f.authority.find = func(context.Context, ca.Query) (ca.Found, error) {
		return ca.Found{}, fmt.Errorf("%w: a proxy asks for a login", node.ErrUnavailable)
	}
	_, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "", false)
	if !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "a proxy asks for a login") {
		t.Errorf("got %v", err)
	}
	if _, err := f.store.Node(t.Context(), "web1.test"); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("the node stays: %v", err)
	}
	for intent, err := range f.store.Intents(t.Context()) {
		t.Errorf("an intent stays: %+v, %v", intent, err)
	}
	for _, entry := range log.AllEntries() {
		if entry.Level <= logrus.WarnLevel {
			t.Errorf("logged %q", entry.Message)
		}
	}
}

// An intent that can't be settled for a while is in the log once, not at every try.
func TestUnsettledIsLoggedOnce(t *testing.T) {
	f := newFixture(t)
	log := logtest.NewLocal(f.options.Log.(*logrus.Logger))
	f.authority.sign = func(context.Context, ca.Request) (*x509.Certificate, error) {
		return nil, fmt.Errorf("%w: the answer was lost", node.ErrUnavailable)
	}
	f.authority.find = func(context.Context, ca.Query) (ca.Found, error) {
		return ca.Found{}, fmt.Errorf("%w: the CA is down", node.ErrUnavailable)
	}
	if _, err := f.Provision(self(t), node.Node{Certname: "web1.test"}, registry.Spec{}, "", false); err == nil {
		t.Fatal("provisioned")
	}
	for range 3 {
		if !registry.SettleAll(self(t), f.Registry) {
			t.Error("nothing is left to settle")
		}
	}
	said := 0
	for _, entry := range log.AllEntries() {
		if entry.Message == "an unfinished issue can't be settled yet" {
			said++
		}
	}
	if said != 1 {
		t.Errorf("logged %d times", said)
	}
}
