// Package audit has the audit log: who did what on which node, and which calls were refused.
//
// The line of a change is in the change's own commit. About a second later the sealer (Log.Run) moves lines to their
// places in a hash chain, several in one commit. It adds the lines of refused calls, which are in memory until then.
// docs/audit.md describes the form, and what the chain proves.
package audit

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/espm-project/espm/internal/node"
)

// Line returns the line of an action of ctx's caller, with the outcome ok. The caller of Line sets the object.
func Line(ctx context.Context, at time.Time, action node.Action) node.AuditLine {
	who := node.CallerOf(ctx)
	return node.AuditLine{
		ID:        uuid.Must(uuid.NewV7()).String(),
		Time:      node.NewAuditTime(at),
		Principal: who.Name,
		Role:      who.Role,
		Peer:      who.Peer,
		Method:    who.Method,
		Action:    action,
		Outcome:   node.OutcomeOK,
	}
}

// OfNode returns the Line of an action on a registration.
func OfNode(ctx context.Context, at time.Time, action node.Action, n node.Node) node.AuditLine {
	l := Line(ctx, at, action)
	l.Certname, l.UID, l.Serial = n.Certname, n.UID, n.Newest()
	return l
}

// OfRevocation returns the Line of an action on a revocation.
func OfRevocation(ctx context.Context, at time.Time, action node.Action, r node.Revocation) node.AuditLine {
	l := Line(ctx, at, action)
	l.Certname, l.UID, l.Serial, l.Comment = r.Certname, r.UID, r.Serial, r.Comment
	l.Object = "revocation/" + r.ID
	return l
}
