package node

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCheckTokenName(t *testing.T) {
	for name, ok := range map[string]bool{
		"ci": true, "0": true, "a.b_c-d": true, strings.Repeat("a", 64): true,
		"": false, ".a": false, "-a": false, "_a": false, "A": false, "a/b": false, "a b": false, "ä": false, "a:b": false, strings.Repeat("a", 65): false,
	} {
		if err := CheckTokenName("name", name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestGrantCheck(t *testing.T) {
	full := Grant{Names: []string{"**.test"}, Environments: []string{""}, Groups: []string{}, Extensions: []string{"pp_role"}, MaxTTL: time.Hour, RequestsPerSecond: 0.5, OpenProvisions: 3}
	if err := full.Check("", Provisioner); err != nil {
		t.Error(err)
	}
	if err := (Grant{RequestsPerSecond: 5}).Check("", Reader); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		grant  Grant
		role   Role
		fields string
	}{
		{full, Admin, "g.environments g.extensions g.groups g.max_ttl g.names"},
		{Grant{Names: []string{"ok", ""}}, Provisioner, "g.names[1]"},
		{Grant{Groups: []string{"a b"}}, Provisioner, "g.groups[0]"},
		{Grant{Extensions: []string{strings.Repeat("x", 256)}}, Provisioner, "g.extensions[0]"},
		{Grant{Environments: make([]string, 101)}, Provisioner, "g.environments"},
		{Grant{MaxTTL: -1, RequestsPerSecond: -1, OpenProvisions: -1}, Provisioner, "g.max_ttl g.open_provisions g.requests_per_second"},
		{Grant{RequestsPerSecond: 2e6, OpenProvisions: 10_001}, Reader, "g.open_provisions g.requests_per_second"},
	} {
		err, _ := c.grant.Check("g.", c.role).(*InvalidError)
		var got []string
		if err != nil {
			for _, v := range err.Violations {
				got = append(got, v.Field)
			}
		}
		if strings.Join(got, " ") != c.fields || !slices.IsSorted(got) {
			t.Errorf("%+v: got %q, want %q", c.grant, got, c.fields)
		}
	}
}

func TestTokenLive(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		token Token
		live  bool
	}{
		"for ever": {Token{}, true},
		"still":    {Token{ExpiresAt: now.Add(1)}, true},
		"expired":  {Token{ExpiresAt: now}, false},
		"revoked":  {Token{RevokedAt: now, ExpiresAt: now.Add(time.Hour)}, false},
	} {
		if c.token.Live(now) != c.live {
			t.Errorf("%s: live is %v", name, !c.live)
		}
	}
}
