package auth

import (
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/test/testbed"
)

func TestPrincipals(t *testing.T) {
	for want, list := range map[string][]Principal{
		"exactly one":                      {{Role: node.Admin}},
		"principals[0]: exactly one":       {{Certname: "a", AuthRole: "b"}},
		`certname: "a" is listed twice`:    {{Certname: "a"}, {Certname: "a"}},
		`[1].auth_role: "a" is listed twi`: {{AuthRole: "a"}, {AuthRole: "a"}},
	} {
		if _, err := NewPrincipals(list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if c := (Principals{}).Caller(issue(t, nil, "web1.test", nil).cert); c.Role != "" || c.Name != "certname:web1.test" {
		t.Errorf("got %+v", c)
	}
	for _, cn := range []string{"", "UPPER", "a/b"} {
		if c := (Principals{}).Caller(issue(t, nil, cn, nil).cert); c.Name != "" {
			t.Errorf("%q: got %+v", cn, c)
		}
	}
}

func TestSecret(t *testing.T) {
	made := newSecret()
	s := string(made.Bytes())
	if !strings.HasPrefix(s, "espm_") || len(s) != 48 || string(newSecret().Bytes()) == s {
		t.Errorf("got %d characters", len(s))
	}
	if again, err := ParseSecret(s); err != nil || string(again.Bytes()) != s || hashOf(again) != hashOf(made) || len(hashOf(made)) != 64 {
		t.Errorf("read again: %v", err)
	}
	for _, bad := range []string{"", "espm_", s + "A", s[:47], "espm-" + s[5:], " " + s, s[:47] + "!"} {
		if _, err := ParseSecret(bad); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestLimits(t *testing.T) {
	at := now
	l := NewLimits(func() time.Time { return at })
	c := node.Caller{Name: "token:ci", Role: node.Provisioner, Grant: node.Grant{RequestsPerSecond: 2}}
	for range 2 {
		if err := l.Request(c); err != nil {
			t.Fatal(err)
		}
	}
	err := l.Request(c)
	limit, ok := errors.AsType[*node.LimitError](err)
	if !ok || !errors.Is(err, node.ErrRateLimited) || limit.RetryAfter != 500*time.Millisecond {
		t.Fatalf("got %v", err)
	}
	at = at.Add(limit.RetryAfter)
	if err := l.Request(c); err != nil {
		t.Error("after the delay: ", err)
	}
	if err := l.Request(node.Caller{Name: "token:other", Role: node.Reader}); err != nil {
		t.Error("another's: ", err)
	}
	c.Grant.RequestsPerSecond = 1000
	for range 5 {
		at = at.Add(time.Second)
		if err := l.Request(c); err != nil {
			t.Error("with a new grant: ", err)
		}
	}
	for range 10 * DefaultRequests {
		if err := l.Request(node.Caller{Name: "local:root", Role: node.Admin}); err != nil {
			t.Fatal("an admin: ", err)
		}
	}
}

// Streams are counted apart from provisions, and one principal's apart from another's.
func TestStreamsAreLimited(t *testing.T) {
	l := NewLimits(func() time.Time { return now })
	reader := node.Caller{Name: "reader", Role: node.Reader}
	var last func()
	for range OpenStreams {
		var err error
		if last, err = l.Stream(reader); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Stream(reader); !errors.Is(err, node.ErrOpenStreams) {
		t.Errorf("got %v", err)
	}
	_, provision := l.Provision(reader)
	_, other := l.Stream(node.Caller{Name: "other", Role: node.Reader})
	if err := errors.Join(provision, other); err != nil {
		t.Error(err)
	}
	for range 2 * OpenStreams {
		if _, err := l.Stream(node.Caller{Name: "local:root", Role: node.Admin}); err != nil {
			t.Fatal("an admin: ", err)
		}
	}
	last()
	if _, err := l.Stream(reader); err != nil {
		t.Error(err)
	}
}

// Whatever names come, memory does not grow, and those at work are not forgotten.
func TestLimitsAreBounded(t *testing.T) {
	at := now
	l := NewLimits(func() time.Time { return at })
	done, err := l.Provision(node.Caller{Name: "busy", Role: node.Provisioner, Grant: node.Grant{OpenProvisions: 1}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxPrincipals {
		at = at.Add(time.Microsecond)
		_ = l.Request(node.Caller{Name: fmt.Sprint(i), Role: node.Reader, Grant: node.Grant{RequestsPerSecond: 0.001}})
	}
	if len(l.all) > maxPrincipals+1 {
		t.Errorf("%d are counted", len(l.all))
	}
	if _, err := l.Provision(node.Caller{Name: "busy", Role: node.Provisioner, Grant: node.Grant{OpenProvisions: 1}}); !errors.Is(err, node.ErrOpenProvisions) {
		t.Errorf("got %v", err)
	}
	done()
	at = at.Add(time.Hour)
	_ = l.Request(node.Caller{Name: "new", Role: node.Reader})
	if len(l.all) > 2 {
		t.Errorf("an hour later %d are counted", len(l.all))
	}
}

func TestLocal(t *testing.T) {
	dir := testbed.Dir(t)
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer, err := PeerOf(conn.(*net.UnixConn))
	if err != nil || len(peer.Groups) == 0 {
		t.Fatalf("got %+v, %v", peer, err)
	}
	self, err := NewLocal("")
	if err != nil {
		t.Fatal(err)
	}
	if c := self.Caller(peer); c.Role != node.Admin || !strings.HasPrefix(c.Name, "local:") || c.Peer == "" {
		t.Errorf("this process is %+v", c)
	}
	some := Local{self: 4711, group: 4712, named: true}
	for name, c := range map[string]struct {
		peer LocalPeer
		role node.Role
	}{
		"root":            {LocalPeer{UID: 0}, node.Admin},
		"the daemon's":    {LocalPeer{UID: 4711}, node.Admin},
		"first group":     {LocalPeer{UID: 4713, Groups: []uint32{4712}}, node.Admin},
		"another group":   {LocalPeer{UID: 4713, Groups: []uint32{1, 4712}}, node.Admin},
		"somebody":        {LocalPeer{UID: 4713, Groups: []uint32{0, 4711, 4713}}, ""},
		"nobody knows it": {LocalPeer{UID: math.MaxUint32 - 7}, ""},
	} {
		if got := some.Caller(c.peer); got.Role != c.role {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if _, err := NewLocal("no-such-group"); err == nil {
		t.Error("a group that does not exist")
	}
}
