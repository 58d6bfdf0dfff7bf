package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// tokenUse says when a token was last used. It is a record of its own, written in batches, so that a call needs no
// commit.
type tokenUse struct {
	At time.Time `json:"at"`
}

// Token returns a token's record, even of a revoked one; node.ErrTokenNotFound if there is none.
func (v tokenView) Token(ctx context.Context, name string) (node.Token, error) {
	t, err := get[node.Token](ctx, v.records, tokenKey(name))
	if errors.Is(err, ErrNoKey) {
		return t, fmt.Errorf("%w: %q", node.ErrTokenNotFound, name)
	}
	if err != nil {
		return t, err
	}
	return v.withUse(ctx, t)
}

// AllTokens returns every token that is not revoked, without its last use.
func (v tokenView) AllTokens(ctx context.Context) ([]node.Token, error) {
	var all []node.Token
	for after := ""; ; {
		page, err := list[node.Token](ctx, v.records, tokenPrefix, after, 1000)
		if err != nil {
			return nil, err
		}
		for _, t := range page.Items {
			if t.RevokedAt.IsZero() {
				all = append(all, t)
			}
		}
		if after = page.Next; after == "" {
			return all, nil
		}
	}
}

// TokenAfter returns a token's record as it is when the outcome of a PutToken that ended with err is certain.
// It returns ErrUnknownOutcome if the outcome is not certain within Bound, and node.ErrTokenNotFound.
func (s *Store) TokenAfter(ctx context.Context, name string, err error) (node.Token, error) {
	if _, err := s.Settle(ctx, err); errors.Is(err, ErrUnknownOutcome) {
		return node.Token{}, err
	}
	return s.Token(ctx, name)
}

// Tokens returns up to limit tokens in order of name, revoked ones too.
func (v tokenView) Tokens(ctx context.Context, after string, limit int) (Page[node.Token], error) {
	page, err := list[node.Token](ctx, v.records, tokenPrefix, after, limit)
	for i := range page.Items {
		if err != nil {
			break
		}
		page.Items[i], err = v.withUse(ctx, page.Items[i])
	}
	return page, err
}

func (v tokenView) withUse(ctx context.Context, t node.Token) (node.Token, error) {
	use, _, err := optional[tokenUse](ctx, v.records, tokenUseKey(t.Name))
	t.UsedAt = use.At
	return t, err
}

// PutToken writes a token in place of old (nil: a new one), with its audit line.
func (s *Store) PutToken(ctx context.Context, old *node.Token, t node.Token, line node.AuditLine) (node.Token, error) {
	c := NewChange()
	c.Audit(line)
	if old == nil {
		c.guard(tokenKey(t.Name), 0)
		c.reindex(nil, t)
	} else {
		c.guard(tokenKey(t.Name), old.Revision)
		c.reindex(*old, t)
	}
	c.put(tokenKey(t.Name), encode(t))
	var err error
	t.Revision, err = s.Commit(ctx, c)
	if errors.Is(err, node.ErrStale) && old == nil {
		return t, fmt.Errorf("%w: %q; the name of a token can't be used again, choose another", node.ErrTokenExists, t.Name)
	}
	return t, err
}

// PutTokenUse stores when tokens were last used, by name. Watches get no event. After an error some may be stored.
func (s *Store) PutTokenUse(ctx context.Context, used map[string]time.Time) error {
	names := slices.Sorted(maps.Keys(used))
	for some := range slices.Chunk(names, s.Fit(max(1, len(names)), 1)) {
		b := Batch{Unwatched: true}
		for _, name := range some {
			b.Puts = append(b.Puts, Put{tokenUseKey(name), encode(tokenUse{used[name]})})
		}
		if _, err := s.commit(context.WithoutCancel(ctx), b); err != nil {
			return err
		}
	}
	return nil
}
