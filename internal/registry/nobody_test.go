package registry_test

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

// Every use case, those to come as well, refuses work without a caller, and a caller without one of the roles.
func TestNobodyMayDoAnything(t *testing.T) {
	f := newFixture(t)
	p := f.provisionBy(t, admin(t), "web1.test", "")
	before, err := f.store.Revision(self(t))
	if err != nil {
		t.Fatal(err)
	}
	own := node.Caller{Name: p.Node.Owner} // even who owns the node has no role
	for who, ctx := range map[string]context.Context{
		"nobody": t.Context(), "no role": node.WithCaller(t.Context(), own),
		"unknown role": node.WithCaller(t.Context(), node.Caller{Name: own.Name, Role: "new"}),
	} {
		for i := range reflect.TypeOf(f.Registry).NumMethod() {
			method := reflect.TypeOf(f.Registry).Method(i)
			if method.Type.NumIn() < 2 || method.Type.In(1) != reflect.TypeFor[context.Context]() || method.Name == "Run" || isForTests(method.Name) {
				continue
			}
			args := []reflect.Value{reflect.ValueOf(ctx)}
			for at := 2; at < method.Type.NumIn(); at++ {
				args = append(args, argument(method.Type.In(at), p))
			}
			out := reflect.ValueOf(f.Registry).Method(i).Call(args)
			if err := outcome(out[len(out)-1]); !errors.Is(err, node.ErrNotPermitted) {
				t.Errorf("%s: %s: %v, want it refused", who, method.Name, err)
			}
		}
	}
	if now, err := f.store.Revision(self(t)); err != nil || now != before {
		t.Errorf("revision %d after %d, %v", now, before, err)
	}
}

func TestWhoMayReveal(t *testing.T) {
	for _, role := range append([]node.Role{"", "new"}, node.Roles...) {
		err := registry.MayReveal(node.WithCaller(t.Context(), node.Caller{Name: "token:ci", Role: role}))
		if may := role == node.Admin; may != (err == nil) || !may && !errors.Is(err, node.ErrNotPermitted) {
			t.Errorf("role %q: %v", role, err)
		}
	}
	if err := registry.MayReveal(t.Context()); !errors.Is(err, node.ErrNotPermitted) {
		t.Errorf("nobody: %v", err)
	}
}

// isForTests tells the methods of export_test.go.
func isForTests(name string) bool { return name == "Sweep" || name == "EndLaunches" }

// argument is one that no rule on values is broken by.
func argument(of reflect.Type, p registry.Provisioned) reflect.Value {
	switch of {
	case reflect.TypeFor[node.Certname]():
		return reflect.ValueOf(p.Node.Certname)
	case reflect.TypeFor[node.Serial]():
		return reflect.ValueOf(p.Node.Newest())
	case reflect.TypeFor[node.Node]():
		return reflect.ValueOf(node.Node{Certname: "new.test"})
	case reflect.TypeFor[node.Group]():
		return reflect.ValueOf(node.Group{Name: "new"})
	case reflect.TypeFor[registry.RevokeRequest]():
		return reflect.ValueOf(registry.RevokeRequest{Certname: p.Node.Certname})
	case reflect.TypeFor[registry.TerminateRequest]():
		return reflect.ValueOf(registry.TerminateRequest{Certname: p.Node.Certname})
	}
	switch of.Kind() {
	case reflect.String:
		return reflect.ValueOf("x").Convert(of)
	case reflect.Func:
		return reflect.MakeFunc(of, func([]reflect.Value) []reflect.Value { return []reflect.Value{reflect.Zero(of.Out(0))} })
	default:
		return reflect.Zero(of)
	}
}

// outcome is the error that a use case ends with, or that the sequence it returns begins with. Down tells a failure, not an error.
func outcome(last reflect.Value) error {
	switch v := last.Interface().(type) {
	case error:
		return v
	case *node.Failure:
		if v == nil {
			return node.ErrNotPermitted
		}
	}
	if last.Kind() == reflect.Func && strings.HasPrefix(last.Type().String(), "iter.Seq2") {
		for _, second := range last.Seq2() {
			err, _ := second.Interface().(error)
			return err
		}
	}
	return nil
}
