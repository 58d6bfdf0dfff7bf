package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/secret"
)

const (
	// secretPrefix lets scanners of source and logs find a token.
	secretPrefix = "espm_"
	secretBytes  = 32
)

func newSecret() secret.Text {
	var b [secretBytes]byte
	_, _ = rand.Read(b[:]) // never fails
	return secret.New([]byte(secretPrefix + base64.RawURLEncoding.EncodeToString(b[:])))
}

// ParseSecret refuses what no token looks like, so that nothing else is sent, or hashed and looked up.
func ParseSecret(text string) (secret.Text, error) {
	body, ok := strings.CutPrefix(text, secretPrefix)
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if !ok || err != nil || len(b) != secretBytes {
		return secret.Text{}, errors.New("it is no token of espm's")
	}
	return secret.New([]byte(text)), nil
}

// hashOf is what is stored of a token. Its text has 256 random bits, so that there is
// no dictionary to try: a slow hash would protect nothing, and let strangers
// spend the daemon's time.
func hashOf(text secret.Text) string {
	sum := sha256.Sum256(text.Bytes())
	return hex.EncodeToString(sum[:])
}

// TokenStore keeps tokens. Its errors are node.ErrTokenNotFound,
// node.ErrTokenExists and node.ErrStale.
type TokenStore interface {
	Token(ctx context.Context, name string) (node.Token, error)
	AllTokens(ctx context.Context) ([]node.Token, error)
	PutToken(ctx context.Context, old *node.Token, t node.Token, line node.AuditLine) (node.Token, error)
	// TokenAfter reads a token when the outcome of a PutToken that ended with err is certain.
	TokenAfter(ctx context.Context, name string, err error) (node.Token, error)
}

// TokenUses keeps when tokens were last used, by name. It is apart from the store of tokens, as
// a daemon that may not write that one is called with tokens as well.
type TokenUses interface {
	PutTokenUse(ctx context.Context, used map[string]time.Time) error
}

// Bounds of a token's life.
const (
	MinTokenTTL = time.Minute
	MaxTokenTTL = 10 * 365 * 24 * time.Hour
	DefaultTTL  = 90 * 24 * time.Hour
)

// Tokens makes, ends and recognizes bearer tokens. It recognizes them in memory.
type Tokens struct {
	store TokenStore
	table *tokenTable
	uses  TokenUses
	now   func() time.Time
	log   logrus.FieldLogger

	mu   sync.Mutex
	used map[string]time.Time // that the store does not have yet
}

// NewTokens reads the tokens of a store. From then on the store is read for no call, so that
// all writes of tokens go through the value returned. Run keeps when tokens were last used.
func NewTokens(ctx context.Context, s TokenStore, uses TokenUses, now func() time.Time, log logrus.FieldLogger) (*Tokens, error) {
	all, err := s.AllTokens(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the tokens: %w", err)
	}
	t := &Tokens{store: s, table: newTokenTable(), uses: uses, now: now, log: log, used: map[string]time.Time{}}
	for _, one := range all {
		t.table.set(one)
	}
	return t, nil
}

// NewToken is what a token is asked for with.
type NewToken struct {
	Name  string
	Role  node.Role
	Grant node.Grant
	TTL   time.Duration // 0: DefaultTTL
}

func (n NewToken) check() error {
	_, roleErr := node.ParseRole("role", string(n.Role))
	return node.Join(node.CheckTokenName("name", n.Name), roleErr, checkTTL(n.TTL), n.Grant.Check("grant.", n.Role))
}

func checkTTL(ttl time.Duration) error {
	if ttl != 0 && (ttl < MinTokenTTL || ttl > MaxTokenTTL) {
		return node.Invalid("ttl", "from %v to %v, is %v", node.Duration(MinTokenTTL), node.Duration(MaxTokenTTL), node.Duration(ttl))
	}
	return nil
}

// Create makes a token. Its secret is returned this once and kept nowhere.
// node.ErrInvalid; node.ErrTokenExists where the name is taken, or was.
func (t *Tokens) Create(ctx context.Context, n NewToken) (node.Token, secret.Text, error) {
	if err := node.Join(mayWrite(ctx), n.check()); err != nil {
		return node.Token{}, secret.Text{}, err
	}
	text, now := newSecret(), t.now().UTC()
	made, err := t.put(ctx, nil, node.Token{
		Name: n.Name, Role: n.Role, Grant: n.Grant, Hash: hashOf(text),
		CreatedAt: now, CreatedBy: node.CallerOf(ctx).Name, ExpiresAt: now.Add(ttlOr(n.TTL)),
	}, t.line(ctx, node.ActionTokenCreate, n.Name))
	if err != nil {
		return node.Token{}, secret.Text{}, err
	}
	return made, text, nil
}

func mayWrite(ctx context.Context) error {
	if node.CallerOf(ctx).Role != node.Admin {
		return node.NotPermitted("", "only an admin may write tokens")
	}
	return nil
}

func ttlOr(ttl time.Duration) time.Duration {
	if ttl == 0 {
		return DefaultTTL
	}
	return ttl
}

// Rotate gives a token a new secret and a new life. The old secret lets
// nobody in from then on. A revoked one lives again: it is the same principal.
func (t *Tokens) Rotate(ctx context.Context, name string, ttl time.Duration) (node.Token, secret.Text, error) {
	if err := node.Join(mayWrite(ctx), node.CheckTokenName("name", name), checkTTL(ttl)); err != nil {
		return node.Token{}, secret.Text{}, err
	}
	old, err := t.store.Token(ctx, name)
	if err != nil {
		return old, secret.Text{}, err
	}
	text, next, now := newSecret(), old, t.now().UTC()
	next.Hash, next.RotatedAt, next.ExpiresAt, next.RevokedAt = hashOf(text), now, now.Add(ttlOr(ttl)), time.Time{}
	if next, err = t.put(ctx, &old, next, t.line(ctx, node.ActionTokenRotate, name)); err != nil {
		return next, secret.Text{}, err
	}
	return next, text, nil
}

// Revoke ends a token: durable, and for every call from then on, when it
// returns. One that is revoked already is returned as it is.
func (t *Tokens) Revoke(ctx context.Context, name string) (node.Token, error) {
	if err := node.Join(mayWrite(ctx), node.CheckTokenName("name", name)); err != nil {
		return node.Token{}, err
	}
	old, err := t.store.Token(ctx, name)
	if err != nil || !old.RevokedAt.IsZero() {
		return old, err
	}
	next := old
	next.RevokedAt = t.now().UTC()
	return t.put(ctx, &old, next, t.line(ctx, node.ActionTokenRevoke, name))
}

func (t *Tokens) line(ctx context.Context, action node.Action, name string) node.AuditLine {
	l := audit.Line(ctx, t.now(), action)
	l.Object = "token/" + name
	return l
}

// put writes a token, and has calls judged by it when it returns. While the outcome of a
// write is unknown, neither the old nor the new secret lets anybody in.
func (t *Tokens) put(ctx context.Context, old *node.Token, next node.Token, line node.AuditLine) (node.Token, error) {
	made, err := t.store.PutToken(ctx, old, next, line)
	switch {
	case err == nil:
		t.table.set(made)
	case errors.Is(err, node.ErrUnavailable):
		t.table.doubt(next.Name, err)
	}
	return made, err
}

// Authenticate returns the token that a text is of, if it is live. It reads memory alone.
// The error says what is wrong with the text, for the log alone.
func (t *Tokens) Authenticate(text string) (node.Token, error) {
	shown, err := ParseSecret(text)
	if err != nil {
		return node.Token{}, err
	}
	found, err := t.table.find(hashOf(shown))
	if err != nil {
		return found, err
	}
	now := t.now()
	if !found.Live(now) {
		return found, fmt.Errorf("token %s expired at %s", found.Name, found.ExpiresAt.Format(time.RFC3339))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used[found.Name] = now.UTC().Truncate(time.Second)
	return found, nil
}

// flushEvery is how far behind the last uses in the store may be.
const flushEvery = time.Minute

// Run stores when tokens were last used, and finds out what became of writes with an unknown
// outcome, until ctx is done.
func (t *Tokens) Run(ctx context.Context) {
	var settling sync.WaitGroup
	settling.Go(func() { t.settle(ctx) })
	defer settling.Wait()
	for {
		select {
		case <-ctx.Done():
			t.flush(context.WithoutCancel(ctx))
			return
		case <-time.After(flushEvery):
			t.flush(ctx)
		}
	}
}

func (t *Tokens) flush(ctx context.Context) {
	t.mu.Lock()
	used := t.used
	t.used = map[string]time.Time{}
	t.mu.Unlock()
	if len(used) == 0 {
		return
	}
	if err := t.uses.PutTokenUse(ctx, used); err != nil {
		t.log.WithError(err).Warn("the last uses of tokens can't be stored")
	}
}
