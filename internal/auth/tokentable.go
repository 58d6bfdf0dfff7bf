package auth

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// tokenTable has the tokens in memory, by the hash of the secret. A token is in doubt while the outcome of its last
// write is unknown.
type tokenTable struct {
	mu      sync.RWMutex
	byHash  map[string]node.Token
	current map[string]version // by name, of revoked tokens too
	doubted chan struct{}      // wakes settle: a token may be in doubt
	doubts  int                // the number of doubts so far
}

// version is the table's state of one token name.
type version struct {
	hash     string // "": every secret is refused
	revision int64
	err      error // of the write with an unknown outcome
	doubt    int   // the number of the doubt; 0: there is none
}

func newTokenTable() *tokenTable {
	return &tokenTable{byHash: map[string]node.Token{}, current: map[string]version{}, doubted: make(chan struct{}, 1)}
}

// set puts a token from the store into the table. A token older than the table's is ignored: concurrent writes may
// return in any order.
func (t *tokenTable) set(one node.Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old, found := t.current[one.Name]; found && old.revision > one.Revision {
		return
	}
	t.put(one)
}

func (t *tokenTable) put(one node.Token) {
	delete(t.byHash, t.current[one.Name].hash)
	now := version{revision: one.Revision}
	if one.RevokedAt.IsZero() {
		now.hash = one.Hash
		t.byHash[one.Hash] = one
	}
	t.current[one.Name] = now
}

// doubt refuses a token until the outcome of its write is known.
func (t *tokenTable) doubt(name string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.current[name]
	delete(t.byHash, old.hash)
	t.doubts++
	t.current[name] = version{revision: old.revision, err: err, doubt: t.doubts}
	select {
	case t.doubted <- struct{}{}:
	default:
	}
}

// inDoubt returns the tokens in doubt, by name.
func (t *tokenTable) inDoubt() map[string]version {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := map[string]version{}
	for name, v := range t.current {
		if v.doubt > 0 {
			all[name] = v
		}
	}
	return all
}

// find returns the unrevoked token with the hash. The token may have expired.
func (t *tokenTable) find(hash string) (node.Token, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	found, ok := t.byHash[hash]
	if !ok {
		return found, fmt.Errorf("%w: none has that hash", node.ErrTokenNotFound)
	}
	return found, nil
}

// settleAgain is the pause before the store is read again for a token in doubt.
const settleAgain = time.Second

// settle reads tokens in doubt from the store, until ctx is done.
func (t *Tokens) settle(ctx context.Context) {
	for {
		var again <-chan time.Time
		for name, doubt := range t.table.inDoubt() {
			one, err := t.store.TokenAfter(ctx, name, doubt.err)
			switch {
			case err == nil:
				t.table.settle(doubt, one)
			case errors.Is(err, node.ErrTokenNotFound):
				t.table.forget(name, doubt)
			default:
				t.log.WithField("token", name).WithError(err).Warn("the token is refused: the store has not confirmed the last change of the token; espm retries")
				again = time.After(settleAgain)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.table.doubted:
		case <-again:
		}
	}
}

// settle ends a doubt with a token from the store. If the token was written again after the read, settle does nothing:
// the later write may be in doubt too.
func (t *tokenTable) settle(doubt version, one node.Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current[one.Name].doubt == doubt.doubt {
		t.put(one)
	}
}

// forget ends a doubt about a token that the store does not have, under the same condition as settle.
func (t *tokenTable) forget(name string, doubt version) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current[name].doubt == doubt.doubt {
		delete(t.current, name)
	}
}

// endedFor is how long Credentials returns a token after the expiry.
const endedFor = 7 * 24 * time.Hour

// Credentials returns the unrevoked tokens that expire. A token that expired before endedFor is left out: nobody waits
// for the rotation of such a token.
func (t *Tokens) Credentials() []node.Credential {
	t.table.mu.RLock()
	defer t.table.mu.RUnlock()
	var all []node.Credential
	for _, one := range t.table.byHash {
		if one.ExpiresAt.IsZero() || t.now().Sub(one.ExpiresAt) > endedFor {
			continue
		}
		begin := one.CreatedAt
		if one.RotatedAt.After(begin) {
			begin = one.RotatedAt
		}
		all = append(all, node.Credential{Kind: node.BearerToken, Name: one.Name, NotBefore: begin, NotAfter: one.ExpiresAt})
	}
	return all
}
