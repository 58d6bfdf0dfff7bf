// Package audit keeps the audit log: who did what, on which node, and who was refused it.
//
// A change's line is in the change's own commit. Within a second or so the sealer (Log.Run)
// moves lines to their places in a hash chain, several in one commit, and adds those of refused
// calls, which it had in memory. docs/audit.md has the form, and what the chain proves.
package audit

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/espm-project/espm/internal/node"
)

// Line returns the line of an act, for whom ctx says, as if it went well; the caller fills in what it was about.
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

// OfNode is Line about a registration.
func OfNode(ctx context.Context, at time.Time, action node.Action, n node.Node) node.AuditLine {
	l := Line(ctx, at, action)
	l.Certname, l.UID, l.Serial = n.Certname, n.UID, n.Newest()
	return l
}

// OfRevocation is Line about a revocation.
func OfRevocation(ctx context.Context, at time.Time, action node.Action, r node.Revocation) node.AuditLine {
	l := Line(ctx, at, action)
	l.Certname, l.UID, l.Serial, l.Comment = r.Certname, r.UID, r.Serial, r.Comment
	l.Object = "revocation/" + r.ID
	return l
}
