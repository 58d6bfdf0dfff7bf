package puppetserver

import (
	"errors"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/ca"
)

// Of two certificates of a name a server before 8.2.2 revokes the one in signed/. The other order is
// refused for good, with its serial. A server that may know the inventory is asked again.
func TestRevokeTwoOfOneName(t *testing.T) {
	for version, final := range map[string]bool{"7.9.5": true, "8.2.1": true, "8.2.2": false, "8.10.0": false, "": false, "devel": false} {
		t.Run("version "+version, func(t *testing.T) {
			n := newNames(t)
			n.version = version
			a := n.stub.open(t)
			first := targets(t, a, "a.test")[0]
			n.mu.Lock()
			delete(n.signed, "a.test") // an operator had it signed anew, and did not revoke the first
			n.mu.Unlock()
			second := targets(t, a, "a.test")[0]
			other := targets(t, a, "b.test")[0]
			receipts, err := a.Revoke(t.Context(), []ca.Target{first, second, other})
			if receipts[0].Serial != "" || receipts[1].Serial != second.Serial || receipts[2].Serial != other.Serial {
				t.Errorf("receipts %+v", receipts)
			}
			refused, ok := errors.AsType[*ca.RefusedError](err)
			if !ok || refused.Targets[1] != nil || refused.Targets[2] != nil {
				t.Fatalf("got %v", err)
			}
			if got := errors.Is(refused.Targets[0], ca.ErrImpossible); got != final {
				t.Errorf("final %v, want %v: %v", got, final, refused.Targets[0])
			}
			if text := refused.Targets[0].Error(); !strings.Contains(text, string(first.Serial)) || !strings.Contains(text, "a.test") {
				t.Errorf("it does not say which: %s", text)
			}
			if final && !strings.Contains(refused.Targets[0].Error(), string(second.Serial)) {
				t.Errorf("the error does not name the other serial: %v", refused.Targets[0])
			}

			// If espm was killed before it stored the error, the next error is the same, although signed/ has no file now.
			_, err = a.Revoke(t.Context(), []ca.Target{first})
			if again, ok := errors.AsType[*ca.RefusedError](err); !ok || errors.Is(again.Targets[0], ca.ErrImpossible) != final {
				t.Errorf("the second time: %v", err)
			}
		})
	}
}

// If a certificate was in signed/ and is not on the CRL, another writer has lost its entry. The revocation is retried.
func TestRevokeIsTriedAgain(t *testing.T) {
	n := newNames(t)
	n.version = "7.9.5"
	a := n.stub.open(t)
	target := targets(t, a, "a.test")[0]
	n.answer["PUT "+statusPath("a.test")] = 404
	_, err := a.Revoke(t.Context(), []ca.Target{target})
	if refused, ok := errors.AsType[*ca.RefusedError](err); !ok || errors.Is(refused.Targets[0], ca.ErrImpossible) {
		t.Errorf("got %v", err)
	}
}
