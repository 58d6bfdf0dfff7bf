package node

import (
	"fmt"
	"math/big"
	"strings"
	"time"
)

// Serial is a certificate's serial number as upper-case hexadecimal of at
// least four digits, the way Puppet's inventory spells it without "0x".
type Serial string

// SerialOf spells a serial number.
func SerialOf(n *big.Int) Serial { return Serial(fmt.Sprintf("%04X", n)) }

// Int returns the number; false if s is not a serial in SerialOf's spelling.
func (s Serial) Int() (*big.Int, bool) {
	n, ok := new(big.Int).SetString(string(s), 16)
	if !ok || n.Sign() < 0 || SerialOf(n) != s {
		return nil, false
	}
	return n, true
}

// Certificate is espm's record of a certificate that it issued or imported. A foreign certificate gets a record when
// its revocation is ordered; that record has no UID.
type Certificate struct {
	Serial     Serial    `json:"serial"`
	Certname   Certname  `json:"certname"`
	UID        UID       `json:"uid"`
	Owner      string    `json:"owner,omitempty"` // that of the registration
	NotBefore  time.Time `json:"not_before"`
	NotAfter   time.Time `json:"not_after"`
	PEM        string    `json:"pem"`
	RequestID  string    `json:"request_id,omitempty"` // Request.Key of the call that it was issued for
	Revocation string    `json:"revocation,omitempty"` // id of its Revocation, once one was asked for
	Receipt    *Receipt  `json:"receipt,omitempty"`    // nil until the certificate is revoked
	Impossible bool      `json:"impossible,omitempty"` // the authority can't carry out the revocation
	ImportedAt time.Time `json:"imported_at,omitzero"` // when it was adopted; zero: espm issued it

	Revision int64 `json:"-"`
}

// IssueIntent is durable before the authority is asked to sign. The commit of the outcome removes it. An intent that is
// in the store at the start is of an interrupted issue, and is settled.
type IssueIntent struct {
	UID       UID      `json:"uid"`
	Certname  Certname `json:"certname"`
	Serial    Serial   `json:"serial,omitempty"`     // empty if the authority chooses it
	KeyHash   string   `json:"key_hash"`             // SHA-256 of the SubjectPublicKeyInfo, hex
	CallerKey bool     `json:"caller_key"`           // the caller has the private key, and sent a CSR
	RequestID string   `json:"request_id,omitempty"` // Request.Key
	// NewNode and NewRequest say that the registration, or the request id, was committed with the intent. If the issue
	// fails, they are removed with it.
	NewNode    bool `json:"new_node"`
	NewRequest bool `json:"new_request"`

	CreatedAt time.Time `json:"created_at"`

	// The certificate is adopted only if it has these, too.
	DNSAltNames []string          `json:"dns_alt_names,omitempty"`
	Extensions  map[string]string `json:"extensions,omitempty"` // by dotted OID
	TTL         time.Duration     `json:"ttl,omitempty"`        // nanoseconds; 0: any

	Revision int64 `json:"-"`
}

// Request records the call of a request id, so that a retry is safe.
type Request struct {
	ID        string    `json:"id"`
	Principal string    `json:"principal,omitempty"` // the caller; empty in records from before ids had a principal
	Hash      string    `json:"hash"`                // SHA-256 of the content, hex
	Certname  Certname  `json:"certname"`
	UID       UID       `json:"uid"`
	CreatedAt time.Time `json:"created_at"`

	Revision int64 `json:"-"`
}

// Key returns a key that is unique among the request ids of all principals. An id has no spaces, so two pairs of
// principal and id never have the same key.
func (r Request) Key() string {
	if r.Principal == "" {
		return r.ID
	}
	return r.Principal + " " + r.ID
}

// RequestIDOf returns the id of a Request.Key, as its caller gave it.
func RequestIDOf(key string) string { return key[strings.LastIndexByte(key, ' ')+1:] }

// Revocation is a durable order to revoke one certificate. It is open until
// it has a receipt, is dropped, or turns out to be impossible.
type Revocation struct {
	ID        string    `json:"id"` // UUIDv7: ordered by time
	Serial    Serial    `json:"serial"`
	Certname  Certname  `json:"certname"`
	UID       UID       `json:"uid,omitempty"`   // empty if espm did not issue the certificate
	Owner     string    `json:"owner,omitempty"` // that of the registration
	Reason    Reason    `json:"reason,omitempty"`
	Comment   string    `json:"comment,omitempty"` // the caller's reason in words
	CreatedAt time.Time `json:"created_at"`
	Receipt   *Receipt  `json:"receipt,omitempty"`
	Failure   *Failure  `json:"failure,omitempty"` // of the last try, if the authority refused this revocation
	Drop      *Drop     `json:"drop,omitempty"`

	Impossible *Impossible `json:"impossible,omitempty"`

	Revision int64 `json:"-"`
}

// Open reports whether the revocation is still to be carried out.
func (r Revocation) Open() bool { return r.Receipt == nil && r.Drop == nil && r.Impossible == nil }

// Failure is the failed tries of a revocation.
type Failure struct {
	Error    string    `json:"error"`
	Attempts int       `json:"attempts"`
	FailedAt time.Time `json:"failed_at"`
	RetryAt  time.Time `json:"retry_at"` // not before
}

// Drop records that an admin closed a revocation without carrying it out.
type Drop struct {
	Comment   string    `json:"comment"`
	DroppedAt time.Time `json:"dropped_at"`
}

// Impossible says that the authority can't revoke the certificate, now or later. The
// certificate stays valid until it expires.
type Impossible struct {
	Reason  string    `json:"reason"`
	FoundAt time.Time `json:"found_at"`
}

// Receipt proves that a revocation took effect.
type Receipt struct {
	Serial      Serial    `json:"serial"`
	CRLNumber   string    `json:"crl_number"` // decimal; of a CRL that lists the serial
	PublishedAt time.Time `json:"published_at"`
	PublishedTo []string  `json:"published_to,omitempty"` // the files that hold the CRL, or its URL
}
