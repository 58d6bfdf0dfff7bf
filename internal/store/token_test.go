package store_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
)

func TestTokens(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	lines := 0
	line := func() node.AuditLine {
		lines++
		return node.AuditLine{ID: fmt.Sprint("l", lines), Time: node.NewAuditTime(t0), Principal: "local:root", Action: node.ActionTokenCreate, Outcome: node.OutcomeOK}
	}
	grant := node.Grant{Names: []string{"*.test"}, Environments: []string{}, MaxTTL: time.Hour}
	made := must(f.PutToken(ctx, nil, node.Token{Name: "ci", Role: node.Provisioner, Grant: grant, Hash: "h1", CreatedAt: t0, CreatedBy: "local:root"}, line()))(t)
	equal(t, "by name", must(f.Token(ctx, "ci"))(t), made)
	equal(t, "all", must(f.AllTokens(ctx))(t), []node.Token{made})
	if _, err := f.PutToken(ctx, nil, node.Token{Name: "ci", Hash: "h2"}, line()); !errors.Is(err, node.ErrTokenExists) {
		t.Errorf("a second of that name: %v", err)
	}

	check(t, f.PutTokenUse(ctx, map[string]time.Time{"ci": t0.Add(time.Minute)}))
	equal(t, "used", must(f.Token(ctx, "ci"))(t).UsedAt, t0.Add(time.Minute))

	rotated := made
	rotated.Hash = "h2"
	rotated = must(f.PutToken(ctx, &made, rotated, line()))(t)
	equal(t, "all, one rotated", must(f.AllTokens(ctx))(t), []node.Token{rotated})
	if _, err := f.PutToken(ctx, &made, made, line()); !errors.Is(err, node.ErrStale) {
		t.Errorf("a write over a newer record: %v", err)
	}

	gone := rotated
	gone.RevokedAt = t0
	must(f.PutToken(ctx, &rotated, gone, line()))(t)
	equal(t, "all, one revoked", len(must(f.AllTokens(ctx))(t)), 0)
	equal(t, "after a write without a doubt", must(f.TokenAfter(ctx, "ci", node.ErrStale))(t).RevokedAt, t0)
	if _, err := f.PutToken(ctx, nil, node.Token{Name: "ci", Hash: "h3"}, line()); !errors.Is(err, node.ErrTokenExists) {
		t.Errorf("the name of a revoked one: %v", err)
	}
	must(f.PutToken(ctx, nil, node.Token{Name: "ab", Hash: "h4"}, line()))(t)
	page := must(f.Tokens(ctx, "", 1))(t)
	equal(t, "first page", len(page.Items), 1)
	equal(t, "first", page.Items[0].Name, "ab")
	page = must(f.Tokens(ctx, page.Next, 10))(t)
	equal(t, "second page", page.Items[0].Name, "ci")
	equal(t, "used", page.Items[0].UsedAt, t0.Add(time.Minute))
}
