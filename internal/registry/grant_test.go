package registry_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// want checks for a refusal of a field; "" for none.
func wantRefused(t *testing.T, what string, err error, field string) {
	t.Helper()
	denied, ok := errors.AsType[*node.NotPermittedError](err)
	switch {
	case field == "" && err != nil:
		t.Errorf("%s: got %v", what, err)
	case field != "" && (!ok || denied.Field != field):
		t.Errorf("%s: got %v, want field %q refused", what, err, field)
	}
}

func TestGrantOfNames(t *testing.T) {
	f := newFixture(t)
	f.options.Principals.Certnames = []string{"boss.test"}
	f.options.Served = func() []string { return []string{"espm.test"} }
	f.restart()
	if _, err := f.Register(by(t, "token:b"), node.Node{Certname: "db1.ci.test"}, "", false); err != nil {
		t.Fatal(err)
	}
	ci := []string{"*.CI.test"}
	for _, test := range []struct {
		name  node.Certname
		alt   []string
		names []string
		field string
	}{
		{"web1.ci.test", nil, nil, ""},
		{"web1.ci.test", []string{"www.ci.test"}, nil, ""},
		{"web1.ci.test", []string{"db1.ci.test"}, nil, "dns_alt_names"},
		{"web1.ci.test", []string{"puppet.test"}, nil, "dns_alt_names"},
		{"web1.ci.test", []string{"puppet"}, nil, "dns_alt_names"},
		{"web1.ci.test", []string{"boss.test"}, nil, "dns_alt_names"},
		{"web1.ci.test", []string{"espm.test"}, nil, "dns_alt_names"},
		{"espm.test", nil, nil, "certname"},
		{"puppet.test", nil, nil, "certname"},
		{"boss.test", nil, nil, "certname"},
		{"puppet", nil, []string{"**"}, "certname"},
		{"web1.ci.test", []string{"web1.ci.test", "www.ci.test"}, ci, ""},
		{"web1.ci.test", []string{"www.test"}, ci, "dns_alt_names"},
		{"web1.ci.test", []string{"db1.ci.test"}, ci, "dns_alt_names"},
		{"web1.prod.test", nil, ci, "certname"},
		{"web1.ci.test.evil.test", nil, ci, "certname"},
		{"a.web1.ci.test", nil, ci, "certname"},
		{"web1.ci.test", nil, []string{}, "certname"},
		{"a.web1.ci.test", nil, []string{"x.test", "**.ci.test"}, ""},
	} {
		ctx := granted(t, "token:a", node.Grant{Names: test.names})
		_, err := f.Provision(ctx, node.Node{Certname: test.name}, registry.Spec{DNSAltNames: test.alt}, "", true)
		wantRefused(t, "provision "+string(test.name), err, test.field)
		if len(test.alt) == 0 {
			_, err := f.Register(ctx, node.Node{Certname: test.name}, "", true)
			wantRefused(t, "register "+string(test.name), err, test.field)
		}
	}
	if _, err := f.Provision(admin(t), node.Node{Certname: "boss.test"}, registry.Spec{}, "", true); err != nil {
		t.Error("an admin is confined: ", err)
	}
	// A certificate for a node that it owns, of a name that it is not granted any more.
	if _, err := f.Register(by(t, "token:a"), node.Node{Certname: "web9.test"}, "", false); err != nil {
		t.Fatal(err)
	}
	_, err := f.Issue(granted(t, "token:a", node.Grant{Names: ci}), "web9.test", "", registry.Spec{}, "", true)
	wantRefused(t, "issue", err, "certname")
}

func TestGrantOfLife(t *testing.T) {
	f := newFixture(t)
	ctx := granted(t, "token:a", node.Grant{MaxTTL: 24 * time.Hour})
	_, err := f.Provision(ctx, node.Node{Certname: "web1.test"}, registry.Spec{TTL: 24*time.Hour + time.Second}, "", false)
	wantRefused(t, "longer", err, "ttl")
	life := func(ttl time.Duration) time.Duration {
		p, err := f.Provision(ctx, node.Node{Certname: "web1.test"}, registry.Spec{TTL: ttl}, "", false)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(p.Bundle.CertificatePEM)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Terminate(ctx, registry.TerminateRequest{Certname: "web1.test"}, 0, false); err != nil {
			t.Fatal(err)
		}
		return time.Until(cert.NotAfter)
	}
	for ttl, want := range map[time.Duration]time.Duration{0: 24 * time.Hour, time.Hour: time.Hour, 24 * time.Hour: 24 * time.Hour} {
		if got := life(ttl); got > want || got < want-10*time.Minute {
			t.Errorf("asked for %v: lives %v, want %v", ttl, got, want)
		}
	}
}

func TestGrantOfExtensions(t *testing.T) {
	f := newFixture(t)
	for _, test := range []struct {
		asked   string
		granted []string
		refused bool
	}{
		{"pp_role", nil, false},
		{"pp_role", []string{}, true},
		{"pp_role", []string{"pp_role"}, false},
		{"pp_role", []string{"1.3.6.1.4.1.34380.1.1.13"}, false},
		{"1.3.6.1.4.1.34380.1.1.13", []string{"pp_role"}, false},
		{"pp_auth_role", nil, true},
		{"1.3.6.1.4.1.34380.1.3.13", nil, true},
		{"1.3.6.1.4.1.34380.1.3.99", nil, true},
		{"pp_auth_role", []string{"pp_role"}, true},
		{"pp_auth_role", []string{"pp_auth_role"}, false},
		{"pp_auth_role", []string{"pp_auth_role=x"}, false},
		{"1.3.6.1.4.1.34380.1.3.13", []string{"pp_auth_role=x"}, false},
		{"pp_auth_role", []string{"pp_auth_role=y", "pp_auth_role="}, true},
		{"pp_role", []string{"pp_role=y"}, true},
		{"pp_role", []string{"pp_role=y", "1.3.6.1.4.1.34380.1.1.13=x"}, false},
		{"pp_cli_auth", []string{"pp_cli_auth"}, true},
	} {
		ctx := granted(t, "token:a", node.Grant{Extensions: test.granted})
		spec := registry.Spec{Extensions: map[string]string{test.asked: "x"}}
		_, err := f.Provision(ctx, node.Node{Certname: "web1.test"}, spec, "", true)
		field := ""
		if test.refused {
			exts, _ := ca.ParseExtensions(spec.Extensions)
			field = "extensions[" + ca.ExtensionName(exts[0].ID) + "]"
		}
		wantRefused(t, test.asked, err, field)
	}
	csr := newCSRWith(t, "web1.test", map[string]string{"pp_role": "x"})
	_, err := f.Provision(granted(t, "token:a", node.Grant{Extensions: []string{}}), node.Node{Certname: "web1.test"}, registry.Spec{CSRPEM: csr}, "", true)
	wantRefused(t, "in the CSR", err, "extensions[pp_role]")
}

// A value by which a principal is known makes its holder that principal.
func TestNoGrantMakesAPrincipal(t *testing.T) {
	f := newFixture(t)
	f.options.Principals.AuthRoles = []string{"admins"}
	f.restart()
	const oid = "1.3.6.1.4.1.34380.1.3.13"
	ask := func(ctx context.Context, spec registry.Spec) error {
		_, err := f.Provision(ctx, node.Node{Certname: "web1.test"}, spec, "", true)
		return err
	}
	for _, name := range []string{"pp_auth_role", oid} {
		spec := registry.Spec{Extensions: map[string]string{name: "admins"}}
		for _, entry := range []string{"pp_auth_role", "pp_auth_role=admins", oid, oid + "=admins"} {
			wantRefused(t, entry, ask(granted(t, "token:a", node.Grant{Extensions: []string{entry}}), spec), "extensions[pp_auth_role]")
		}
		wantRefused(t, "an admin", ask(admin(t), spec), "")
	}
	csr := newCSRWith(t, "web1.test", map[string]string{"pp_auth_role": "admins"})
	err := ask(granted(t, "token:a", node.Grant{Extensions: []string{"pp_auth_role"}}), registry.Spec{CSRPEM: csr, Extensions: map[string]string{"pp_auth_role": "admins"}})
	wantRefused(t, "in the CSR", err, "extensions[pp_auth_role]")

	web := registry.Spec{Extensions: map[string]string{"pp_auth_role": "web"}}
	caller := granted(t, "token:a", node.Grant{Extensions: []string{"pp_auth_role=web"}})
	wantRefused(t, "a value that is no principal's", ask(caller, web), "")
	f.SetPrincipals(registry.Principals{AuthRoles: []string{"web"}})
	wantRefused(t, "after a reload", ask(caller, web), "extensions[pp_auth_role]")
	wantRefused(t, "after a reload, the old one", ask(granted(t, "token:a", node.Grant{Extensions: []string{"pp_auth_role"}}), registry.Spec{Extensions: map[string]string{"pp_auth_role": "admins"}}), "")
}

func TestReviewGrant(t *testing.T) {
	f := newFixture(t)
	f.SetPrincipals(registry.Principals{AuthRoles: []string{"admins"}})
	for entry, want := range map[string]string{
		"pp_role":                         "",
		"pp_role=admins":                  "",
		"pp_auth_role=web":                "",
		"no_such=thing":                   "",
		"pp_auth_role":                    "warned",
		"pp_authorization":                "warned",
		"pp_cli_auth":                     "refused",
		"pp_cli_auth=true":                "refused",
		"pp_auth_role=admins":             "refused",
		"1.3.6.1.4.1.34380.1.3.13=admins": "refused",
	} {
		warnings, err := f.ReviewGrant(node.Grant{Extensions: []string{entry}})
		got := ""
		switch {
		case errors.Is(err, node.ErrInvalid):
			got = "refused"
		case len(warnings) == 1:
			got = "warned"
		}
		if got != want || err != nil && len(warnings) > 0 {
			t.Errorf("%s: got %q, %v", entry, warnings, err)
		}
	}
}

func TestGrantOfClassification(t *testing.T) {
	f := newFixture(t)
	for _, g := range []node.Group{
		{Name: "base", Classification: node.Classification{Environment: "production"}},
		{Name: "web", Parents: []string{"base"}},
		{Name: "plain"},
		{Name: "hardened"},
	} {
		if _, err := f.CreateGroup(admin(t), g, false); err != nil {
			t.Fatal(err)
		}
	}
	environment := func(e string) node.Classification { return node.Classification{Environment: e} }
	envs, groups := node.Grant{Environments: []string{"ci", "production"}}, node.Grant{Groups: []string{"web", "plain"}}
	for _, test := range []struct {
		what  string
		grant node.Grant
		node  node.Node
		field string
	}{
		{"granted", envs, node.Node{Classification: environment("ci")}, ""},
		{"not granted", envs, node.Node{Classification: environment("secret")}, "environment"},
		{"none, which is not granted", envs, node.Node{}, "environment"},
		{"none, which is", node.Grant{Environments: []string{""}}, node.Node{}, ""},
		{"from an ancestor", envs, node.Node{Groups: []string{"web"}}, ""},
		{"from an ancestor, not granted", node.Grant{Environments: []string{"", "ci"}}, node.Node{Groups: []string{"web"}}, "environment"},
		{"its own, though a group says another", node.Grant{Environments: []string{"ci"}}, node.Node{Groups: []string{"web"}, Classification: environment("ci")}, ""},
		{"groups", groups, node.Node{Groups: []string{"web", "plain"}}, ""},
		{"a parent", groups, node.Node{Groups: []string{"base"}}, "groups"},
		{"one that there is not", groups, node.Node{Groups: []string{"none"}}, "groups"},
		{"no group at all", node.Grant{Groups: []string{}}, node.Node{Groups: []string{"plain"}}, "groups"},
	} {
		ctx := granted(t, "token:a", test.grant)
		test.node.Certname = "web1.test"
		_, err := f.Register(ctx, test.node, "", true)
		wantRefused(t, "register, "+test.what, err, test.field)
		_, err = f.Provision(ctx, test.node, registry.Spec{}, "", true)
		wantRefused(t, "provision, "+test.what, err, test.field)
	}

	// No way around by an update; what an admin set stays, and is in nobody's way.
	n := node.Node{Certname: "web2.test", Groups: []string{"plain"}, Classification: environment("ci")}
	if _, err := f.Register(by(t, "token:a"), n, "", false); err != nil {
		t.Fatal(err)
	}
	edit := func(g node.Grant, change func(*node.Node)) error {
		_, err := f.Update(granted(t, "token:a", g), "web2.test", registry.Expect{}, func(n *node.Node) error { change(n); return nil }, true)
		return err
	}
	wantRefused(t, "update to an environment", edit(envs, func(n *node.Node) { n.Classification.Environment = "secret" }), "environment")
	wantRefused(t, "update to a group's environment", edit(node.Grant{Environments: []string{"ci"}}, func(n *node.Node) {
		n.Classification.Environment, n.Groups = "", []string{"web"}
	}), "environment")
	wantRefused(t, "update to a group", edit(groups, func(n *node.Node) { n.Groups = []string{"hardened", "plain"} }), "groups")
	if _, err := f.Update(admin(t), "web2.test", registry.Expect{}, func(n *node.Node) error {
		n.Groups, n.Classification.Environment = []string{"hardened", "plain"}, "secret"
		return nil
	}, false); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "out of a group that an admin put it in", edit(groups, func(n *node.Node) { n.Groups = nil }), "groups")
	wantRefused(t, "out of its own group", edit(groups, func(n *node.Node) { n.Groups = []string{"hardened"} }), "")
	wantRefused(t, "labels", edit(node.Grant{Groups: []string{}, Environments: []string{}}, func(n *node.Node) { n.Labels = map[string]string{"a": "b"} }), "")
}

// One look at a group serves all checks of a write.
func TestGroupsAreReadOnceForAWrite(t *testing.T) {
	f := newFixture(t)
	if _, err := f.CreateGroup(admin(t), node.Group{Name: "web", Classification: node.Classification{Environment: "ci"}}, false); err != nil {
		t.Fatal(err)
	}
	reads := 0
	f.engine.onGet(func(ctx context.Context, key string) (store.Record, error) {
		if key == "group/web" {
			reads++
		}
		return f.engine.Engine.Get(ctx, key)
	})
	ctx := granted(t, "token:a", node.Grant{Environments: []string{"ci"}})
	if _, err := f.Register(ctx, node.Node{Certname: "web1.test", Groups: []string{"web"}}, "", false); err != nil {
		t.Fatal(err)
	}
	if reads != 1 {
		t.Errorf("read %d times", reads)
	}
}

func TestGrantOfReadingGroups(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		if _, err := f.CreateGroup(admin(t), node.Group{Name: name}, false); err != nil {
			t.Fatal(err)
		}
	}
	ctx := granted(t, "token:a", node.Grant{Groups: []string{"d", "b", "none", "b"}})
	_, hidden := f.Group(ctx, "a")
	_, absent := f.Group(ctx, "z")
	if hidden == nil || absent == nil || hidden.Error() != `group not found: "a"` || absent.Error() != `group not found: "z"` {
		t.Errorf("got %v and %v", hidden, absent)
	}
	var names []string
	for after := ""; ; {
		page, err := f.Groups(ctx, after, 1)
		if err != nil || page.Revision == 0 {
			t.Fatal(page, err)
		}
		for _, g := range page.Items {
			names = append(names, g.Name)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if len(names) != 2 || names[0] != "b" || names[1] != "d" {
		t.Errorf("got %v", names)
	}
}

func TestMatches(t *testing.T) {
	for _, test := range []struct {
		pattern, name string
		want          bool
	}{
		{"web1.test", "web1.test", true},
		{"web1.test", "web1xtest", false},
		{"web1.test", "web1.test.evil", false},
		{"web1.test", "my.web1.test", false},
		{"*.test", "web1.test", true},
		{"*.test", "a.web1.test", false},
		{"*.test", ".test", true},
		{"**.test", "a.web1.test", true},
		{"web*.test", "web.test", true},
		{"web*.test", "web1.a.test", false},
		{"web*-ci.*.test", "web12-ci.eu.test", true},
		{"a*b*c", "aXbXbXc", true},
		{"a*b*c", "aXbX.c", false},
		{"a**c", "a.b.c", true},
		{"***", "a.b", true},
		{"*", "a.b", false},
		{"**", "a.b", true},
		{"", "", true},
		{"", "a", false},
		{"WEB*", "web1", true},
		{"we[b]1", "web1", false},
		{"web?", "web1", false},
	} {
		if got := registry.Matches(test.pattern, test.name); got != test.want {
			t.Errorf("%q on %q: got %v", test.pattern, test.name, got)
		}
	}
}
