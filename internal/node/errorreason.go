package node

import (
	"context"
	"errors"
)

// ErrorReasons are the reasons in the API and the audit log, for errors that callers distinguish. An error has the
// reason of the first row that errors.Is matches.
var ErrorReasons = []struct {
	Err    error
	Reason string
}{
	{ErrInvalid, "INVALID"},
	{ErrNodeNotFound, "NODE_NOT_FOUND"},
	{ErrNodeExists, "NODE_EXISTS"},
	{ErrUIDMismatch, "UID_MISMATCH"},
	{ErrProtected, "CERTNAME_PROTECTED"},
	{ErrGroupNotFound, "GROUP_NOT_FOUND"},
	{ErrGroupExists, "GROUP_EXISTS"},
	{ErrGroupInUse, "GROUP_IN_USE"},
	{ErrConflict, "CLASSIFICATION_CONFLICT"},
	{ErrStale, "REVISION_STALE"},
	{ErrRequestReused, "REQUEST_ID_REUSED"},
	{ErrRequestSpent, "REQUEST_ID_SPENT"},
	{ErrCertificateExists, "CERTIFICATE_EXISTS"},
	{ErrForeignCertificate, "CERTIFICATE_FOREIGN"},
	{ErrCertificateNotFound, "CERTIFICATE_NOT_FOUND"},
	{ErrRevocationNotFound, "REVOCATION_NOT_FOUND"},
	{ErrRevocationClosed, "REVOCATION_CLOSED"},
	{ErrIssuing, "ISSUE_IN_PROGRESS"},
	{ErrForeignRequest, "REQUEST_FOREIGN"},
	{ErrRefused, "CA_REFUSED"},
	{ErrCompacted, "REVISION_COMPACTED"},
	{ErrUnauthenticated, ReasonUnauthenticated},
	{ErrNotPermitted, ReasonNotPermitted},
	{ErrRateLimited, "RATE_LIMITED"},
	{ErrOpenProvisions, "TOO_MANY_OPEN_PROVISIONS"},
	{ErrOpenStreams, "TOO_MANY_OPEN_STREAMS"},
	{ErrTokenNotFound, "TOKEN_NOT_FOUND"},
	{ErrTokenExists, "TOKEN_EXISTS"},
	{ErrUnavailable, "UNAVAILABLE"},
	{context.DeadlineExceeded, "DEADLINE_EXCEEDED"},
	{context.Canceled, "CANCELED"},
}

// Reasons that code compares with.
const (
	ReasonUnauthenticated = "UNAUTHENTICATED"
	ReasonNotPermitted    = "PERMISSION_DENIED"
	ReasonInternal        = "INTERNAL" // of an error without a row
)

// ErrorReason returns an error's reason in the API and in the audit log.
func ErrorReason(err error) string {
	for _, row := range ErrorReasons {
		if errors.Is(err, row.Err) {
			return row.Reason
		}
	}
	return ReasonInternal
}
