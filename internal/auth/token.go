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
	// secretPrefix lets secret scanners find a token in source code and in logs.
	secretPrefix = "espm_"
	secretBytes  = 32
)

func newSecret() secret.Text {
	var b [secretBytes]byte
	_, _ = rand.Read(b[:]) // never fails
	return secret.New([]byte(secretPrefix + base64.RawURLEncoding.EncodeToString(b[:])))
}

// ParseSecret refuses a text without the form of a token, so that no other secret is sent to a server or hashed.
func ParseSecret(text string) (secret.Text, error) {
	body, ok := strings.CutPrefix(text, secretPrefix)
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if !ok || err != nil || len(b) != secretBytes {
		return secret.Text{}, errors.New("it is no token of espm's")
	}
	return secret.New([]byte(text)), nil
}

// hashOf returns the only form of a token that is stored. A token has 256 random bits, so no dictionary attack exists.
// A slow hash would add no protection, and would let strangers waste the daemon's CPU time.
func hashOf(text secret.Text) string {
	sum := sha256.Sum256(text.Bytes())
	return hex.EncodeToString(sum[:])
}

// TokenStore stores tokens. Errors: node.ErrTokenNotFound, node.ErrTokenExists, node.ErrStale.
type TokenStore interface {
	Token(ctx context.Context, name string) (node.Token, error)
	AllTokens(ctx context.Context) ([]node.Token, error)
	PutToken(ctx context.Context, old *node.Token, t node.Token, line node.AuditLine) (node.Token, error)
	// TokenAfter reads a token after a PutToken that returned err, as soon as the outcome of that write is certain.
	TokenAfter(ctx context.Context, name string, err error) (node.Token, error)
}

// TokenUses stores the time of each token's last use, by name. The two stores are separate, because a daemon that
// may not write tokens accepts calls with tokens too.
type TokenUses interface {
	PutTokenUse(ctx context.Context, used map[string]time.Time) error
}

// Bounds of a token's lifetime.
const (
	MinTokenTTL = time.Minute
	MaxTokenTTL = 10 * 365 * 24 * time.Hour
	DefaultTTL  = 90 * 24 * time.Hour
)

// Tokens creates, rotates, revokes and authenticates bearer tokens. Authentication reads memory only.
type Tokens struct {
	store TokenStore
	table *tokenTable
	uses  TokenUses
	now   func() time.Time
	log   logrus.FieldLogger

	mu   sync.Mutex
	used map[string]time.Time // not stored yet
}

// NewTokens reads all tokens of a store. Authenticate never reads the store, so every write of a token must go through
// the returned value. Run stores the last uses.
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

// NewToken describes a token to create.
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

// Create creates a token. Only this call returns the secret, which is stored nowhere.
// Errors: node.ErrNotPermitted; node.ErrInvalid; node.ErrTokenExists if the name is or was in use.
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

// Rotate replaces the secret of a token and starts a new lifetime. The old secret is refused from then on. A revoked
// token becomes valid again, as the same principal.
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

// Revoke revokes a token. When Revoke returns, the revocation is durable and every later call with the token is
// refused. A token that is already revoked is returned unchanged.
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

// put writes a token, and updates the table before it returns. While the outcome of the write is unknown, both the old
// and the new secret are refused.
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

// Authenticate returns the live token whose secret is text. Authenticate reads memory only. The error names the
// cause, for the log only.
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

// flushEvery is the longest delay until the last use of a token is stored.
const flushEvery = time.Minute

// Run stores the last uses of tokens, and settles writes with an unknown outcome, until ctx is done.
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
