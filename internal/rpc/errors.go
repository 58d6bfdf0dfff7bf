package rpc

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/node"
)

// Domain is that of the ErrorInfo in every error.
const Domain = "espm"

// table is the one place where an error of the domain becomes a gRPC status:
// the first row that errors.Is matches.
var table = []struct {
	err    error
	code   codes.Code
	reason string
}{
	{node.ErrInvalid, codes.InvalidArgument, "INVALID"},
	{node.ErrNodeNotFound, codes.NotFound, "NODE_NOT_FOUND"},
	{node.ErrNodeExists, codes.AlreadyExists, "NODE_EXISTS"},
	{node.ErrUIDMismatch, codes.FailedPrecondition, "UID_MISMATCH"},
	{node.ErrProtected, codes.FailedPrecondition, "CERTNAME_PROTECTED"},
	{node.ErrGroupNotFound, codes.NotFound, "GROUP_NOT_FOUND"},
	{node.ErrGroupExists, codes.AlreadyExists, "GROUP_EXISTS"},
	{node.ErrGroupInUse, codes.FailedPrecondition, "GROUP_IN_USE"},
	{node.ErrConflict, codes.FailedPrecondition, "CLASSIFICATION_CONFLICT"},
	{node.ErrStale, codes.Aborted, "REVISION_STALE"},
	{node.ErrRequestReused, codes.InvalidArgument, "REQUEST_ID_REUSED"},
	{node.ErrRequestSpent, codes.FailedPrecondition, "REQUEST_ID_SPENT"},
	{node.ErrCertificateExists, codes.FailedPrecondition, "CERTIFICATE_EXISTS"},
	{node.ErrForeignCertificate, codes.FailedPrecondition, "CERTIFICATE_FOREIGN"},
	{node.ErrCertificateNotFound, codes.NotFound, "CERTIFICATE_NOT_FOUND"},
	{node.ErrRevocationNotFound, codes.NotFound, "REVOCATION_NOT_FOUND"},
	{node.ErrRevocationClosed, codes.FailedPrecondition, "REVOCATION_CLOSED"},
	{node.ErrIssuing, codes.Aborted, "ISSUE_IN_PROGRESS"},
	{node.ErrForeignRequest, codes.FailedPrecondition, "REQUEST_FOREIGN"},
	{node.ErrRefused, codes.FailedPrecondition, "CA_REFUSED"},
	{node.ErrCompacted, codes.OutOfRange, "REVISION_COMPACTED"},
	{node.ErrUnauthenticated, codes.Unauthenticated, "UNAUTHENTICATED"},
	{node.ErrNotPermitted, codes.PermissionDenied, "PERMISSION_DENIED"},
	{node.ErrRateLimited, codes.ResourceExhausted, "RATE_LIMITED"},
	{node.ErrOpenProvisions, codes.ResourceExhausted, "TOO_MANY_OPEN_PROVISIONS"},
	{node.ErrTokenNotFound, codes.NotFound, "TOKEN_NOT_FOUND"},
	{node.ErrTokenExists, codes.AlreadyExists, "TOKEN_EXISTS"},
	{node.ErrUnavailable, codes.Unavailable, "UNAVAILABLE"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "DEADLINE_EXCEEDED"},
	{context.Canceled, codes.Canceled, "CANCELED"},
}

// toStatus turns an error of the domain into a gRPC status error. What is in
// no row of the table is INTERNAL.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, row := range table {
		if errors.Is(err, row.err) {
			return withDetails(status.New(row.code, node.Shorten(err.Error(), maxText)), row.reason, err)
		}
	}
	return withDetails(status.New(codes.Internal, node.Shorten(err.Error(), maxText)), "INTERNAL", err)
}

// maxText bounds an error's message, in bytes, and the violations in its
// details likewise: a status travels as HTTP/2 headers, of which clients in
// other languages take 8 KiB, and the message goes twice, once in base64.
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
