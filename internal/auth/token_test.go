package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/secret"
)

// records is a store of tokens that counts what is read, and tells of the uses that are written.
type records struct {
	mu       sync.Mutex
	all      map[string]node.Token
	revision int64
	fails    error // of the next write, which is applied nevertheless
	certain  chan struct{}
	reads    int
	puts     []map[string]time.Time
}

func newRecords() *records {
	return &records{all: map[string]node.Token{}, certain: make(chan struct{})}
}

func (r *records) AllTokens(context.Context) (all []node.Token, err error) {
	for _, t := range r.all {
		all = append(all, t)
	}
	return all, nil
}

func (r *records) Token(_ context.Context, name string) (node.Token, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	t, found := r.all[name]
	if !found {
		return t, node.ErrTokenNotFound
	}
	return t, nil
}

func (r *records) PutToken(_ context.Context, _ *node.Token, t node.Token, _ node.AuditLine) (node.Token, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revision++
	t.Revision = r.revision
	r.all[t.Name] = t
	err := r.fails
	r.fails = nil
	return t, err
}

func (r *records) TokenAfter(ctx context.Context, name string, _ error) (node.Token, error) {
	select {
	case <-r.certain:
		return r.Token(ctx, name)
	case <-ctx.Done():
		return node.Token{}, ctx.Err()
	}
}

func (r *records) PutTokenUse(_ context.Context, used map[string]time.Time) error {
	r.puts = append(r.puts, used)
	return nil
}

func tokensOf(t *testing.T, r *records, clock func() time.Time) *Tokens {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	tokens, err := NewTokens(t.Context(), r, r, clock, log)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func create(t *testing.T, tokens *Tokens, name string) secret.Text {
	t.Helper()
	_, text, err := tokens.Create(node.AsSelf(t.Context()), NewToken{Name: name, Role: node.Reader, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func accepts(tokens *Tokens, text secret.Text) bool {
	_, err := tokens.Authenticate(string(text.Bytes()))
	return err == nil
}

// A call costs no commit: uses are written in one, and only where there are any.
func TestLastUse(t *testing.T) {
	r, at := newRecords(), now
	tokens := tokensOf(t, r, func() time.Time { return at })
	text := create(t, tokens, "ci")
	for range 3 {
		if !accepts(tokens, text) {
			t.Fatal("a live token is refused")
		}
		at = at.Add(time.Second)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	tokens.Run(ended)
	tokens.Run(ended)
	if len(r.puts) != 1 || !r.puts[0]["ci"].Equal(now.Add(2*time.Second)) {
		t.Errorf("got %v", r.puts)
	}
	at = now.Add(time.Hour)
	if accepts(tokens, text) {
		t.Error("an expired one was let in")
	}
}

// Whoever shows a token, or what looks like one, costs no read of the store. A change counts
// from the moment that it returns, and for a daemon that starts later.
func TestTokensAreLookedUpInMemory(t *testing.T) {
	r, clock := newRecords(), func() time.Time { return now }
	tokens := tokensOf(t, r, clock)
	first, other := create(t, tokens, "ci"), create(t, tokens, "other")
	ctx := node.AsSelf(t.Context())
	_, second, err := tokens.Rotate(ctx, "ci", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tokens.Revoke(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	before := r.reads
	for name, each := range map[string]*Tokens{"this daemon": tokens, "the next": tokensOf(t, r, clock)} {
		if accepts(each, first) || !accepts(each, second) || accepts(each, other) || accepts(each, newSecret()) {
			t.Errorf("%s: old secret %v, new %v, revoked %v", name, accepts(each, first), accepts(each, second), accepts(each, other))
		}
	}
	if r.reads != before {
		t.Errorf("%d reads of the store, want none", r.reads-before)
	}
}

// While it is unknown whether a change of a token was stored, neither secret lets anybody in.
func TestTokenInDoubt(t *testing.T) {
	r := newRecords()
	tokens := tokensOf(t, r, func() time.Time { return now })
	text := create(t, tokens, "ci")
	r.fails = fmt.Errorf("%w: outcome unknown", node.ErrUnavailable)
	if _, err := tokens.Revoke(node.AsSelf(t.Context()), "ci"); !errors.Is(err, node.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	if accepts(tokens, text) {
		t.Error("a token is accepted that may be revoked")
	}
	if _, text, err := tokens.Rotate(node.AsSelf(t.Context()), "ci", time.Hour); err != nil || !accepts(tokens, text) {
		t.Errorf("a later change that was stored does not count: %v", err)
	}
	r.fails = fmt.Errorf("%w: outcome unknown", node.ErrUnavailable)
	_, _, _ = tokens.Rotate(node.AsSelf(t.Context()), "ci", time.Hour)
	go tokens.Run(t.Context())
	close(r.certain)
	for deadline := time.Now().Add(time.Minute); len(tokens.table.inDoubt()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the doubt does not end")
		}
	}
	if _, err := tokens.table.find(r.all["ci"].Hash); err != nil {
		t.Errorf("the change was stored: %v", err)
	}
}

// lateRecords has another write of the token in doubt after TokenAfter has read it.
type lateRecords struct {
	*records
	once  sync.Once
	later func()
}

func (r *lateRecords) TokenAfter(ctx context.Context, name string, _ error) (node.Token, error) {
	one, err := r.Token(ctx, name)
	r.once.Do(r.later)
	return one, err
}

// A read for an earlier doubt does not end a later one: the token may be revoked meanwhile.
func TestTokenInDoubtTwice(t *testing.T) {
	r := &lateRecords{records: newRecords()}
	tokens, err := NewTokens(t.Context(), r, r, func() time.Time { return now }, logrus.New())
	if err != nil {
		t.Fatal(err)
	}
	create(t, tokens, "ci")
	unknown := fmt.Errorf("%w: outcome unknown", node.ErrUnavailable)
	revoked := make(chan struct{})
	r.later = func() {
		defer close(revoked)
		r.fails = unknown
		_, _ = tokens.Revoke(node.AsSelf(t.Context()), "ci")
	}
	r.fails = unknown
	_, _, _ = tokens.Rotate(node.AsSelf(t.Context()), "ci", time.Hour)
	rotated := r.all["ci"].Hash
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go tokens.Run(ctx)
	<-revoked
	for deadline := time.Now().Add(time.Minute); len(tokens.table.inDoubt()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the doubt does not end")
		}
	}
	if _, err := tokens.table.find(rotated); err == nil {
		t.Error("a token that is revoked in the store is accepted")
	}
}
