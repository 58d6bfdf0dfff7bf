package puppetserver

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/espm-project/espm/internal/node"
)

// rule is an entry of Puppet Server's auth.conf that espm needs.
type rule struct {
	path    string // a prefix, like path in auth.conf
	methods string
	open    bool // allowed to everybody by default
}

// rules has longer paths before their prefixes, as forbidden uses the first match.
var rules = []rule{
	{apiPath + "certificate_revocation_list/ca", "get", true},
	{apiPath + "certificate_request", "[get, put]", true},
	{apiPath + "certificate_status", "[get, put, delete]", false},
	{apiPath + "certificate/", "get", true},
	{apiPath + "clean", "put", false},
	{"/status/v1/services", "get", true},
}

// text returns the rule in the form of auth.conf. Its sort-order puts it before the package's own
// rules, which have 500.
func (r rule) text(client string) string {
	allow := "allow-unauthenticated: true"
	if !r.open {
		allow = fmt.Sprintf("allow: [%q, {extensions: {pp_cli_auth: \"true\"}}]", client)
	}
	return fmt.Sprintf("{ match-request: { path: %q, type: path, method: %s }, %s, sort-order: 400, name: %q }",
		r.path, r.methods, allow, "espm "+strings.Trim(strings.TrimPrefix(r.path, apiPath), "/"))
}

// ruleText matches what text returns, for whichever client.
var ruleText = regexp.MustCompile(`\{ match-request: \{ path: "[^"]+", type: path, method: [^}"]+ \}, allow[^\n]*, sort-order: 400, name: "espm [^"]*" \}`)

// HasRule reports whether an auth.conf has a rule that espm proposed.
func HasRule(conf string) bool { return ruleText.MatchString(conf) }

// IsRule reports whether a rule of an auth.conf is one that espm proposed.
func IsRule(rule string) bool { return ruleText.FindString(rule) == rule && rule != "" }

// ForbiddenError is a 403. It is a node.ErrUnavailable: a retry succeeds after an operator has added the
// rule.
type ForbiddenError struct {
	Server       string // its host and port
	Call         string // such as "PUT /puppet-ca/v1/clean"
	Client       string // the certname that was refused
	Rule         string // what to add to auth.conf; "": no rule of espm's
	Said         string // the server's message
	NotPresented string // the client certificate's file, where the CA did not issue it, so that no rule helps
}

func (e *ForbiddenError) Error() string {
	switch {
	case e.NotPresented != "":
		return fmt.Sprintf("Puppet Server %s forbids %s, as the CA did not issue the client certificate %s (%s): set certificate and key in authority.puppetserver to one that it did",
			e.Server, e.Call, e.NotPresented, e.Client)
	case e.Rule == "":
		return fmt.Sprintf("Puppet Server %s forbids %q to %s: %s", e.Server, e.Client, e.Call, e.Said)
	}
	return fmt.Sprintf("Puppet Server %s forbids %q to %s: add to the rules in auth.conf: %s", e.Server, e.Client, e.Call, e.Rule)
}

// Is reports whether target is node.ErrUnavailable.
func (e *ForbiddenError) Is(target error) bool { return target == node.ErrUnavailable }

func (a *server) forbidden(c call, said string) error {
	e := &ForbiddenError{Server: a.base.Host, Call: c.method + " " + c.path, Client: a.credentials.name(), Said: said}
	if a.notPresented() {
		e.NotPresented = a.opts.Certificate
	}
	for _, r := range rules {
		if strings.HasPrefix(c.path, r.path) {
			e.Rule = r.text(e.Client)
			break
		}
	}
	return e
}
