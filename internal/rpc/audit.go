package rpc

import (
	"context"
	"errors"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

type auditLog struct {
	espmv1.UnimplementedAuditServiceServer
	log *audit.Log
}

func (s *auditLog) ListAuditLines(ctx context.Context, req *espmv1.ListAuditLinesRequest) (*espmv1.ListAuditLinesResponse, error) {
	f := audit.Filter{Principal: req.GetPrincipal(), Outcome: req.GetOutcome(), Action: node.Action(req.GetAction()), UID: node.UID(req.GetUid())}
	var nameErr error
	if req.GetCertname() != "" {
		f.Certname, nameErr = node.ParseCertname(req.GetCertname())
	}
	var sinceErr, untilErr error
	f.Since, sinceErr = fromTime("since_time", req.GetSinceTime())
	f.Until, untilErr = fromTime("until_time", req.GetUntilTime())
	if err := node.Join(nameErr, checkUID(req.GetUid()), sinceErr, untilErr); err != nil {
		return nil, err
	}
	name, limit, token, err := paging(f, req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	var before int64
	if token != "" {
		if before, err = strconv.ParseInt(token, 10, 64); err != nil || before < 1 {
			return nil, node.Invalid("page_token", "was not issued by this server")
		}
	}
	lines, next, err := s.log.List(ctx, f, before, limit)
	if err != nil {
		return nil, err
	}
	out := &espmv1.ListAuditLinesResponse{Lines: toLines(lines)}
	if next > 0 {
		out.NextPageToken = pageToken(name, strconv.FormatInt(next, 10))
	}
	return out, nil
}

func fromTime(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if err := t.CheckValid(); err != nil {
		return time.Time{}, node.Invalid(field, "%v", err)
	}
	return t.AsTime(), nil
}

func (s *auditLog) ExportAuditLines(req *espmv1.ExportAuditLinesRequest, stream grpc.ServerStreamingServer[espmv1.ExportAuditLinesResponse]) error {
	if req.GetAfterSeq() < 0 {
		return node.Invalid("after_seq", "must not be negative, is %d", req.GetAfterSeq())
	}
	return s.log.Export(stream.Context(), req.GetAfterSeq(), func(lines []node.SealedLine) error {
		return stream.Send(&espmv1.ExportAuditLinesResponse{Lines: toLines(lines)})
	})
}

func (s *auditLog) VerifyAudit(ctx context.Context, req *espmv1.VerifyAuditRequest) (*espmv1.VerifyAuditResponse, error) {
	var expect *audit.Anchor
	if req.GetExpectSeq() != 0 || req.GetExpectHash() != "" {
		anchor, err := audit.ParseAnchor(audit.Anchor{Seq: req.GetExpectSeq(), Hash: req.GetExpectHash()}.String())
		if err != nil {
			return nil, node.Invalid("expect_hash", "%v", err)
		}
		expect = &anchor
	}
	v, err := s.log.Verify(ctx, expect)
	if unknown, ok := errors.AsType[*audit.TooOldError](err); ok {
		return nil, node.Invalid("expect_seq", "%v", unknown)
	}
	if err != nil {
		return nil, err
	}
	out := &espmv1.VerifyAuditResponse{
		Ok: v.Flaw == nil, Lines: v.Lines, FirstSeq: v.Head.Base + 1, HeadSeq: v.Head.Seq, HeadHash: v.Head.Hash, Bytes: v.Head.Bytes,
	}
	if v.Flaw != nil {
		out.BadSeq, out.Problem = v.Flaw.Seq, v.Flaw.Why
	}
	return out, nil
}

func toLines(lines []node.SealedLine) []*espmv1.AuditLine {
	out := make([]*espmv1.AuditLine, len(lines))
	for i, l := range lines {
		out[i] = &espmv1.AuditLine{
			Seq: l.Seq, Id: l.ID, Time: toTime(l.Time.Time),
			Principal: l.Principal, Role: string(l.Role), Peer: l.Peer, Method: l.Method, Action: string(l.Action),
			Certname: string(l.Certname), Uid: string(l.UID), Serial: string(l.Serial), Object: l.Object,
			RequestId: l.RequestID, Comment: l.Comment, Outcome: l.Outcome, Count: l.Count, SinceTime: toTime(l.Since.Time),
			Revision: l.Revision, PrevHash: l.Prev, Hash: l.Hash,
		}
	}
	return out
}
