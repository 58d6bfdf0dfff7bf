package node_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
)

func TestReasons(t *testing.T) {
	// RFC 5280 section 5.3.1.
	codes := map[string]int{
		"unspecified": 0, "keyCompromise": 1, "cACompromise": 2, "affiliationChanged": 3,
		"superseded": 4, "cessationOfOperation": 5, "privilegeWithdrawn": 9, "aACompromise": 10,
	}
	if len(node.Reasons()) != len(codes) {
		t.Errorf("reasons %v, want %d", node.Reasons(), len(codes))
	}
	codes[""] = 1 // Puppet's
	for name, want := range codes {
		r, err := node.ParseReason(name)
		if err != nil || name != "" && string(r) != name {
			t.Errorf("%q: %q, %v", name, r, err)
		}
		if code, ok := r.Code(); code != want || !ok {
			t.Errorf("%q has code %d, %v; want %d", name, code, ok, want)
		}
	}
	if code, ok := node.Reason("").Code(); code != 1 || !ok {
		t.Errorf("no reason has code %d, %v; want 1", code, ok)
	}
}

func TestNoReasons(t *testing.T) {
	for _, name := range []string{"certificateHold", "removeFromCRL", "KeyCompromise", "1", " ", "superseded ", strings.Repeat("x", 1000)} {
		_, err := node.ParseReason(name)
		if !errors.Is(err, node.ErrInvalid) || !strings.HasPrefix(err.Error(), "reason: must be one of unspecified, ") {
			t.Errorf("%.40q: %v", name, err)
		}
		if _, ok := node.Reason(name).Code(); ok {
			t.Errorf("%.40q has a code", name)
		}
	}
}
