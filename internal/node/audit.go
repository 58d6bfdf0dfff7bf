package node

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Action is the kind of an audit line.
type Action string

// The actions. docs/audit.md says which call, or which work of espm itself, leaves which line.
const (
	ActionRegister    Action = "node.register"
	ActionUpdate      Action = "node.update"
	ActionProvision   Action = "node.provision"
	ActionImport      Action = "node.import"
	ActionClaim       Action = "node.claim"
	ActionLift        Action = "node.lift_deadline"
	ActionTerminate   Action = "node.terminate"
	ActionGiveUp      Action = "node.give_up" // ForgetNode
	ActionForget      Action = "node.forget"  // housekeeping
	ActionBegin       Action = "certificate.begin"
	ActionIssue       Action = "certificate.issue"
	ActionSettle      Action = "certificate.settle"
	ActionOrder       Action = "revocation.order"
	ActionReceipt     Action = "revocation.receipt"
	ActionRefusal     Action = "revocation.refused"
	ActionImpossible  Action = "revocation.impossible"
	ActionRetry       Action = "revocation.retry"
	ActionDrop        Action = "revocation.drop"
	ActionGroupCreate Action = "group.create"
	ActionGroupUpdate Action = "group.update"
	ActionGroupDelete Action = "group.delete"
	ActionTokenCreate Action = "token.create"
	ActionTokenRotate Action = "token.rotate"
	ActionTokenRevoke Action = "token.revoke"
	ActionBackup      Action = "backup.create"
	ActionClockAccept Action = "clock.accept"
	ActionConnect     Action = "connect"       // a refused connection
	ActionRead        Action = "read"          // a read that was refused, or that returned a secret
	ActionManyRefused Action = "calls.refused" // several refused calls; see Count
	ActionPrune       Action = "audit.prune"
)

// OutcomeOK is the outcome of a success. The outcome of a failure is the reason of its error.
const OutcomeOK = "ok"

// AuditLine says who did what, or who was refused what. It has no values of nodes and groups, no key and no token.
type AuditLine struct {
	ID        string    `json:"id"` // UUIDv7
	Time      AuditTime `json:"time"`
	Principal string    `json:"principal"`
	Role      Role      `json:"role,omitempty"`
	Peer      string    `json:"peer,omitempty"`
	Method    string    `json:"method,omitempty"`
	Action    Action    `json:"action"`
	Certname  Certname  `json:"certname,omitempty"`
	UID       UID       `json:"uid,omitempty"`
	Serial    Serial    `json:"serial,omitempty"`
	Object    string    `json:"object,omitempty"` // another object than a node, such as "group/web" or "revocation/ID"
	RequestID string    `json:"request_id,omitempty"`
	Comment   string    `json:"comment,omitempty"` // the reason, or details of the result
	Outcome   string    `json:"outcome"`
	Count     int64     `json:"count,omitempty"` // number of calls that the line counts; 0: one
	Since     AuditTime `json:"since,omitzero"`  // time of the first of these calls
}

// SealedLine is an AuditLine at its place in the chain.
type SealedLine struct {
	Seq int64 `json:"seq"` // from 1, without a gap
	AuditLine
	Revision int64  `json:"revision,omitempty"` // the store's revision after the change; 0: no change
	Prev     string `json:"prev"`               // the hash of the line before
	Hash     string `json:"hash"`
}

// AuditHead is the end of the chain, and the base from which its lines are still stored.
type AuditHead struct {
	Seq      int64  `json:"seq"`
	Hash     string `json:"hash"`
	Base     int64  `json:"base"`      // the last pruned line; 0: none is pruned
	BaseHash string `json:"base_hash"` // its hash
	Bytes    int64  `json:"bytes"`     // size of the stored lines

	Revision int64 `json:"-"`
}

// Limits of an audit line's texts, in bytes.
const (
	maxAuditText    = 256
	maxAuditComment = 1024
)

// Bounded returns the line with texts that may be stored: of limited size, valid UTF-8, without line breaks.
func (l AuditLine) Bounded() AuditLine {
	l.Principal, l.Peer, l.Method = bounded(l.Principal, maxAuditText), bounded(l.Peer, maxAuditText), bounded(l.Method, maxAuditText)
	l.Role, l.Action = Role(bounded(string(l.Role), maxAuditText)), Action(bounded(string(l.Action), maxAuditText))
	l.Certname, l.UID, l.Serial = Certname(bounded(string(l.Certname), maxAuditText)), UID(bounded(string(l.UID), maxAuditText)), Serial(bounded(string(l.Serial), maxAuditText))
	l.Object, l.RequestID = bounded(l.Object, maxAuditText), bounded(l.RequestID, maxAuditText)
	l.Comment, l.Outcome = bounded(l.Comment, maxAuditComment), bounded(l.Outcome, maxAuditText)
	return l
}

func bounded(text string, limit int) string {
	if len(text) > limit {
		text = text[:limit-len("...")] + "..."
	}
	return strings.Map(func(c rune) rune {
		if unicode.IsControl(c) || c == unicode.ReplacementChar {
			return '?' // not longer than the character that it replaces
		}
		return c
	}, text)
}

// AuditTime is a time in UTC, to the microsecond. It has exactly one spelling, as it is hashed.
type AuditTime struct{ time.Time }

const auditTimeForm = "2006-01-02T15:04:05.000000Z"

// NewAuditTime returns a time as audit lines have it.
func NewAuditTime(t time.Time) AuditTime { return AuditTime{t.UTC().Truncate(time.Microsecond)} }

// String is the form that is hashed and stored; "" for the zero time.
func (t AuditTime) String() string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(auditTimeForm)
}

// MarshalJSON implements json.Marshaler.
func (t AuditTime) MarshalJSON() ([]byte, error) { return []byte(`"` + t.String() + `"`), nil }

// UnmarshalJSON implements json.Unmarshaler. It refuses another spelling of the same time, which has another hash.
func (t *AuditTime) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	*t = AuditTime{}
	if text == "" {
		return nil
	}
	parsed, err := time.Parse(auditTimeForm, text)
	if err != nil {
		return fmt.Errorf("%q is no time of an audit line: %w", text, err)
	}
	*t = AuditTime{parsed}
	return nil
}
