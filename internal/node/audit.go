package node

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Action says what an audit line is about.
type Action string

// The actions. docs/audit.md says which call, or which work of espm's own, leaves which.
const (
	ActionRegister    Action = "node.register"
	ActionUpdate      Action = "node.update"
	ActionProvision   Action = "node.provision"
	ActionImport      Action = "node.import"
	ActionClaim       Action = "node.claim"
	ActionLift        Action = "node.lift_deadline"
	ActionTerminate   Action = "node.terminate"
	ActionForget      Action = "node.forget"
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
	ActionConnect     Action = "connect"       // a connection that was refused
	ActionRead        Action = "read"          // of a read, only where it was refused or gave out a secret
	ActionManyRefused Action = "calls.refused" // stands for many; see Count
	ActionPrune       Action = "audit.prune"
)

// OutcomeOK is that of what was done; else it is the reason of the error.
const OutcomeOK = "ok"

// AuditLine says who did what, or was refused it. It holds no value that was
// set, no key and no token.
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
	Object    string    `json:"object,omitempty"` // what else it is about: "group/web", "revocation/ID"
	RequestID string    `json:"request_id,omitempty"`
	Comment   string    `json:"comment,omitempty"` // why, or with what result
	Outcome   string    `json:"outcome"`
	Count     int64     `json:"count,omitempty"` // calls that the line stands for; 0: one
	Since     AuditTime `json:"since,omitzero"`  // of the first of them
}

// SealedLine is an AuditLine at its place in the chain.
type SealedLine struct {
	Seq int64 `json:"seq"` // from 1, without a gap
	AuditLine
	Revision int64  `json:"revision,omitempty"` // of the store, that the change made; 0: there was none
	Prev     string `json:"prev"`               // the hash of the line before
	Hash     string `json:"hash"`
}

// AuditHead is where the chain ends, and where what is kept of it begins.
type AuditHead struct {
	Seq      int64  `json:"seq"`
	Hash     string `json:"hash"`
	Base     int64  `json:"base"`      // the last line that is not kept any more; 0: all are kept
	BaseHash string `json:"base_hash"` // its hash
	Bytes    int64  `json:"bytes"`     // that the lines kept take

	Revision int64 `json:"-"`
}

// Limits of an audit line's texts, in bytes.
const (
	maxAuditText    = 256
	maxAuditComment = 1024
)

// Bounded returns the line as it may be stored: with texts of limited size, valid UTF-8, on one line.
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
			return '?' // as long as what it stands for, or shorter
		}
		return c
	}, text)
}

// AuditTime is a time in UTC, to the microsecond, that is always written in one way.
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

// UnmarshalJSON implements json.Unmarshaler. Another form of the same time is refused, as it has another hash.
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
