package rpc

import (
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/node"
)

// Domain is the domain of the ErrorInfo in every error status.
const Domain = "espm"

// statusCodes has the gRPC code of every reason that node.ErrorReason returns.
var statusCodes = map[string]codes.Code{
	"INVALID":                  codes.InvalidArgument,
	"NODE_NOT_FOUND":           codes.NotFound,
	"NODE_EXISTS":              codes.AlreadyExists,
	"UID_MISMATCH":             codes.FailedPrecondition,
	"CERTNAME_PROTECTED":       codes.FailedPrecondition,
	"GROUP_NOT_FOUND":          codes.NotFound,
	"GROUP_EXISTS":             codes.AlreadyExists,
	"GROUP_IN_USE":             codes.FailedPrecondition,
	"CLASSIFICATION_CONFLICT":  codes.FailedPrecondition,
	"REVISION_STALE":           codes.Aborted,
	"REQUEST_ID_REUSED":        codes.InvalidArgument,
	"REQUEST_ID_SPENT":         codes.FailedPrecondition,
	"CERTIFICATE_EXISTS":       codes.FailedPrecondition,
	"CERTIFICATE_FOREIGN":      codes.FailedPrecondition,
	"CERTIFICATE_NOT_FOUND":    codes.NotFound,
	"REVOCATION_NOT_FOUND":     codes.NotFound,
	"REVOCATION_CLOSED":        codes.FailedPrecondition,
	"ISSUE_IN_PROGRESS":        codes.Aborted,
	"REQUEST_FOREIGN":          codes.FailedPrecondition,
	"CA_REFUSED":               codes.FailedPrecondition,
	"REVISION_COMPACTED":       codes.OutOfRange,
	node.ReasonUnauthenticated: codes.Unauthenticated,
	node.ReasonNotPermitted:    codes.PermissionDenied,
	"RATE_LIMITED":             codes.ResourceExhausted,
	"TOO_MANY_OPEN_PROVISIONS": codes.ResourceExhausted,
	"TOO_MANY_OPEN_STREAMS":    codes.ResourceExhausted,
	"TOKEN_NOT_FOUND":          codes.NotFound,
	"TOKEN_EXISTS":             codes.AlreadyExists,
	"UNAVAILABLE":              codes.Unavailable,
	"DEADLINE_EXCEEDED":        codes.DeadlineExceeded,
	"CANCELED":                 codes.Canceled,
	node.ReasonInternal:        codes.Internal,
}

// toStatus turns an error of the domain into a gRPC status error. An error without a reason in node.ErrorReasons is
// INTERNAL.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	reason := node.ErrorReason(err)
	return withDetails(status.New(statusCodes[reason], node.Shorten(err.Error(), maxText)), reason, err)
}

// maxText bounds the message of an error, in bytes. The violations in the details have the same bound. A status is
// sent as HTTP/2 headers, and clients in other languages accept only 8 KiB. The message is sent twice, once in base64.
const maxText = 2048

func badRequest(violations []node.Violation) *errdetails.BadRequest {
	bad := &errdetails.BadRequest{}
	size := 0
	for i, v := range violations {
		field, rule := node.Shorten(v.Field, maxText/4), node.Shorten(v.Rule, maxText/4)
		if size += len(field) + len(rule); size > maxText {
			field, rule = "...", fmt.Sprintf("%d more rules are broken", len(violations)-i)
		}
		bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: field, Description: rule})
		if size > maxText {
			break
		}
	}
	return bad
}

func withDetails(s *status.Status, reason string, err error) error {
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: Domain, Reason: reason}}
	if invalid, ok := errors.AsType[*node.InvalidError](err); ok {
		details = append(details, badRequest(invalid.Violations))
	}
	if denied, ok := errors.AsType[*node.NotPermittedError](err); ok && denied.Field != "" {
		details = append(details, badRequest([]node.Violation{denied.Violation}))
	}
	if busy, ok := errors.AsType[*node.BusyError](err); ok {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(busy.RetryAfter)})
	}
	if limit, ok := errors.AsType[*node.LimitError](err); ok {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(limit.RetryAfter)})
	}
	full, derr := s.WithDetails(details...)
	if derr != nil {
		return s.Err()
	}
	return full.Err()
}
