package registry_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

// With a clock that is not believed nothing is issued, no launch deadline ends and nothing is forgotten. Writes that need no
// signature go on.
func TestClockIsNotBelieved(t *testing.T) {
	f := newLaunching(t)
	believed := true
	f.options.Clock = func() error {
		if believed {
			return nil
		}
		return fmt.Errorf("%w: the clock says something else", node.ErrUnavailable)
	}
	f.restart()
	f.check(t)
	launched := f.launch(t, "launched.test", time.Hour)
	f.provision(t, "old.test", "")
	f.terminate(t, "old.test", "", 0)
	ctx, cancel := context.WithCancel(self(t))
	ended := make(chan struct{})
	go func() { defer close(ended); f.queue.Run(ctx) }()
	f.drain(t)
	cancel()
	<-ended
	if _, err := f.Register(self(t), node.Node{Certname: "plain.test"}, "", false); err != nil {
		t.Fatal(err)
	}

	believed = false
	before := f.revision(t)
	for what, call := range map[string]func() error{
		"provision": func() error {
			_, err := f.Provision(self(t), node.Node{Certname: "new.test"}, registry.Spec{}, "r1", false)
			return err
		},
		"provision, validate only": func() error {
			_, err := f.Provision(self(t), node.Node{Certname: "new.test"}, registry.Spec{}, "", true)
			return err
		},
		"issue": func() error {
			_, err := f.Issue(self(t), "plain.test", "", registry.Spec{}, "r2", false)
			return err
		},
		"issue, validate only": func() error {
			_, err := f.Issue(self(t), "plain.test", "", registry.Spec{}, "", true)
			return err
		},
	} {
		if err := call(); !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "the clock says") || !strings.Contains(err.Error(), ".test") {
			t.Errorf("%s: got %v", what, err)
		}
	}
	f.setClock(6 * 365 * 24 * time.Hour)
	f.after(t, 2*time.Hour)
	registry.Housekeep(self(t), f.Registry)
	if now := f.revision(t); now != before {
		t.Errorf("the store was changed: revision %d, was %d", now, before)
	}
	if n, err := f.Get(self(t), "launched.test", launched.UID); err != nil || n.State != node.Provisioned {
		t.Errorf("the launched node is %v, %v", n.State, err)
	}
	if _, err := f.Register(self(t), node.Node{Certname: "more.test"}, "", false); err != nil {
		t.Error(err)
	}
	f.terminate(t, "plain.test", "", 0)

	believed = true
	if _, err := f.Provision(self(t), node.Node{Certname: "new.test"}, registry.Spec{}, "r1", false); err != nil {
		t.Error(err)
	}
	f.after(t, time.Hour)
	if _, err := f.Get(self(t), "launched.test", ""); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("the launched node is there after its deadline: %v", err)
	}
}
