package node

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Sentinel errors of the domain. Errors that wrap them say what was tried on which name. Test for them with errors.Is.
var (
	// ErrInvalid: the input breaks a rule. The error is an *InvalidError.
	ErrInvalid = errors.New("invalid")
	// ErrNodeNotFound: no live registration (and no matching tombstone) has that certname.
	ErrNodeNotFound = errors.New("node not found")
	// ErrNodeExists: the certname has a live registration.
	ErrNodeExists = errors.New("node exists")
	// ErrUIDMismatch: the uid is not that of a registration of the certname.
	ErrUIDMismatch = errors.New("uid does not match")
	// ErrProtected: the certname may never be terminated or revoked.
	ErrProtected = errors.New("certname is protected")
	// ErrGroupNotFound: no group has that name.
	ErrGroupNotFound = errors.New("group not found")
	// ErrGroupExists: a group has that name.
	ErrGroupExists = errors.New("group exists")
	// ErrGroupInUse: nodes or groups still inherit the group.
	ErrGroupInUse = errors.New("group is in use")
	// ErrConflict: unrelated groups set one thing to different values. The error is a *ConflictError.
	ErrConflict = errors.New("classification conflict")
	// ErrStale: the record changed since the caller read it.
	ErrStale = errors.New("revision is stale")
	// ErrRequestReused: the request id was used before with other content.
	ErrRequestReused = errors.New("request id was used with other content")
	// ErrRequestSpent: the registration that the request id made has been terminated.
	ErrRequestSpent = errors.New("request id belongs to a terminated registration")
	// ErrCertificateExists: the registration has a live certificate.
	ErrCertificateExists = errors.New("node has a certificate")
	// ErrCertificateNotFound: espm neither issued nor adopted a certificate with that serial.
	ErrCertificateNotFound = errors.New("certificate not found")
	// ErrForeignCertificate: the authority has a live certificate of that name that espm did not issue.
	ErrForeignCertificate = errors.New("certname has a certificate that espm did not issue")
	// ErrRevocationNotFound: no revocation has that id.
	ErrRevocationNotFound = errors.New("revocation not found")
	// ErrRevocationClosed: the revocation has been carried out, or dropped.
	ErrRevocationClosed = errors.New("revocation is closed")
	// ErrIssuing: a certificate is being issued for the registration just now.
	ErrIssuing = errors.New("a certificate is being issued")
	// ErrForeignRequest: the CA has a certificate request of the name that is not the registration's. An operator must
	// remove it.
	ErrForeignRequest = errors.New("the CA has another certificate request under the name")
	// ErrRefused: the CA's policy forbids what was asked for.
	ErrRefused = errors.New("the CA refuses the certificate")
	// ErrCompacted: the history kept does not reach back to the revision asked for.
	ErrCompacted = errors.New("revision is older than the history kept")
	// ErrUnauthenticated: the caller is not identified. Only the log has the cause.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrNotPermitted: the caller's role forbids the call. If its grant does, the error is a *NotPermittedError.
	ErrNotPermitted = errors.New("not permitted")
	// ErrRateLimited: the principal's requests come too fast. The error is a *LimitError.
	ErrRateLimited = errors.New("too many requests")
	// ErrOpenProvisions: the principal has too many provisions under way. The error is a *LimitError.
	ErrOpenProvisions = errors.New("too many provisions under way")
	// ErrOpenStreams: the principal has too many watches and other streams open. The error is a *LimitError.
	ErrOpenStreams = errors.New("too many streams open")
	// ErrTokenNotFound: no token has that name.
	ErrTokenNotFound = errors.New("token not found")
	// ErrTokenExists: a token has that name, or had it before it was revoked.
	ErrTokenExists = errors.New("token exists")
	// ErrUnavailable: the authority or the store can't answer now; trying again later is safe.
	ErrUnavailable = errors.New("unavailable")
)

// Violation is one broken rule: the field, in the API's spelling
// ("classes[ntp].servers"), and the rule in words.
type Violation struct {
	Field string
	Rule  string
}

// InvalidError lists the rules that an input breaks, and how many more there are; errors.Is(err, ErrInvalid) holds.
type InvalidError struct {
	Violations []Violation
}

// Invalid returns an *InvalidError with one violation.
func Invalid(field, format string, args ...any) error {
	return &InvalidError{Violations: []Violation{{Field: field, Rule: fmt.Sprintf(format, args...)}}}
}

func (e *InvalidError) Error() string {
	parts := make([]string, len(e.Violations))
	for i, v := range e.Violations {
		parts[i] = v.Field + ": " + v.Rule
	}
	return strings.Join(parts, "; ")
}

// Is reports whether target is ErrInvalid.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// Join gathers the violations of several checks into one error, nil if there
// are none. The first error that is not an *InvalidError is returned alone.
func Join(errs ...error) error {
	var all []Violation
	for _, err := range errs {
		if err == nil {
			continue
		}
		inv, ok := errors.AsType[*InvalidError](err)
		if !ok {
			return err
		}
		for _, v := range inv.Violations {
			if !slices.Contains(all, v) { // two checks may find the same violation
				all = append(all, v)
			}
		}
	}
	if all == nil {
		return nil
	}
	return &InvalidError{Violations: all}
}

// NotPermittedError says what a caller may not ask for: the field, in the API's
// spelling, or "" for the call as such; errors.Is(err, ErrNotPermitted) holds.
type NotPermittedError struct {
	Violation
}

// NotPermitted returns a *NotPermittedError.
func NotPermitted(field, format string, args ...any) error {
	return &NotPermittedError{Violation{Field: field, Rule: fmt.Sprintf(format, args...)}}
}

func (e *NotPermittedError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("%v: %s", ErrNotPermitted, e.Rule)
	}
	return fmt.Sprintf("%v: %s: %s", ErrNotPermitted, e.Field, e.Rule)
}

// Is reports whether target is ErrNotPermitted.
func (e *NotPermittedError) Is(target error) bool { return target == ErrNotPermitted }

// BusyError is an ErrUnavailable that ends without an operator; errors.Is(err, ErrUnavailable) holds.
type BusyError struct {
	Reason     string
	RetryAfter time.Duration // a guess when a retry may succeed
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s: try again in %v", e.Reason, e.RetryAfter)
}

// Is reports whether target is ErrUnavailable.
func (e *BusyError) Is(target error) bool { return target == ErrUnavailable }

// LimitError says that a principal is at one of its limits, Kind, which
// errors.Is matches: ErrRateLimited, ErrOpenProvisions or ErrOpenStreams.
type LimitError struct {
	Kind       error
	Limit      string        // the limit in words
	RetryAfter time.Duration // when to try again
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%v: %s; try again in %v", e.Kind, e.Limit, e.RetryAfter)
}

// Is reports whether target is the kind of limit.
func (e *LimitError) Is(target error) bool { return target == e.Kind }

// maxNamed bounds how many nodes or broken rules an error lists, so that it fits a
// gRPC status (8 KiB of header by default).
const maxNamed = 20

// ConflictError says that two groups, neither an ancestor of the other, set a setting to different values, and nothing
// nearer to the node decides. errors.Is(err, ErrConflict) holds.
type ConflictError struct {
	Setting string    // "environment", "classes[ntp].servers" or "parameters[role]"
	Groups  [2]string // the two conflicting groups, sorted
	Nodes   []Certname
}

func (e *ConflictError) Error() string {
	msg := fmt.Sprintf("groups %q and %q set %s to different values", e.Groups[0], e.Groups[1], e.Setting)
	if len(e.Nodes) == 0 {
		return msg
	}
	names := make([]string, 0, maxNamed)
	for _, n := range e.Nodes[:min(len(e.Nodes), maxNamed)] {
		names = append(names, string(n))
	}
	msg += ": affects " + strings.Join(names, ", ")
	if more := len(e.Nodes) - len(names); more > 0 {
		msg += fmt.Sprintf(" and %d more", more)
	}
	return msg
}

// Is reports whether target is ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// checks gathers violations while a value is walked.
type checks struct {
	violations []Violation
}

func (c *checks) add(field, format string, args ...any) {
	c.violations = append(c.violations, Violation{Field: field, Rule: fmt.Sprintf(format, args...)})
}

func (c *checks) err() error {
	if len(c.violations) == 0 {
		return nil
	}
	slices.SortFunc(c.violations, func(a, b Violation) int {
		return cmp.Or(strings.Compare(a.Field, b.Field), strings.Compare(a.Rule, b.Rule))
	})
	if more := len(c.violations) - maxNamed; more > 0 {
		c.violations = append(c.violations[:maxNamed], Violation{"...", fmt.Sprintf("%d more rules are broken", more)})
	}
	return &InvalidError{Violations: c.violations}
}
