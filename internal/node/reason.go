package node

import (
	"slices"
	"strings"
)

// Reason is why a certificate is revoked, by its name in RFC 5280 section
// 5.3.1. The empty Reason is KeyCompromise: what Puppet gives every revocation.
// The RFC's certificateHold and removeFromCRL are no reasons here: a revocation can't be undone.
type Reason string

// The reasons. An entry with Unspecified has no reason code, as the RFC recommends.
const (
	Unspecified          Reason = "unspecified"
	KeyCompromise        Reason = "keyCompromise"
	CACompromise         Reason = "cACompromise"
	AffiliationChanged   Reason = "affiliationChanged"
	Superseded           Reason = "superseded"
	CessationOfOperation Reason = "cessationOfOperation"
	PrivilegeWithdrawn   Reason = "privilegeWithdrawn"
	AACompromise         Reason = "aACompromise"
)

// reasonCodes are the CRLReason of each, in the order of the codes.
var reasonCodes = []struct {
	reason Reason
	code   int
}{
	{Unspecified, 0}, {KeyCompromise, 1}, {CACompromise, 2}, {AffiliationChanged, 3},
	{Superseded, 4}, {CessationOfOperation, 5}, {PrivilegeWithdrawn, 9}, {AACompromise, 10},
}

// Reasons returns all reasons, in the order of their codes.
func Reasons() []Reason {
	names := make([]Reason, len(reasonCodes))
	for i, r := range reasonCodes {
		names[i] = r.reason
	}
	return names
}

// ParseReason reads a reason by its name; "" is KeyCompromise. The error is
// an *InvalidError on field "reason".
func ParseReason(name string) (Reason, error) {
	if name == "" {
		return KeyCompromise, nil
	}
	if r := Reason(name); slices.Contains(Reasons(), r) {
		return r, nil
	}
	var names []string
	for _, r := range Reasons() {
		names = append(names, string(r))
	}
	return "", Invalid("reason", "must be one of %s, is %.40q", strings.Join(names, ", "), name)
}

// Code returns the CRLReason of RFC 5280 section 5.3.1; false if r is no reason.
func (r Reason) Code() (int, bool) {
	if r == "" {
		r = KeyCompromise
	}
	for _, known := range reasonCodes {
		if known.reason == r {
			return known.code, true
		}
	}
	return 0, false
}
