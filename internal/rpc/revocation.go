package rpc

import (
	"context"
	"math"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

type revocations struct {
	espmv1.UnimplementedRevocationServiceServer
	registry *registry.Registry
}

func (s *revocations) RevokeCertificate(ctx context.Context, req *espmv1.RevokeCertificateRequest) (*espmv1.RevokeCertificateResponse, error) {
	r := registry.RevokeRequest{Comment: req.GetComment(), Force: req.GetForce()}
	var nameErr, serialErr error
	if req.GetCertname() != "" {
		r.Certname, nameErr = node.ParseCertname(req.GetCertname())
	}
	if req.GetSerial() != "" {
		r.Serial, serialErr = parseSerial(req.GetSerial())
	}
	reason, reasonErr := parseReason(req.GetReason())
	wait, waitErr := parseWait(req.GetWait())
	if err := node.Join(nameErr, serialErr, reasonErr, waitErr); err != nil {
		return nil, err
	}
	r.Reason = reason
	revs, err := s.registry.Revoke(ctx, r, wait, req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	out := &espmv1.RevokeCertificateResponse{Revocation: toRevocation(revs[0])}
	for _, rev := range revs {
		out.Revocations = append(out.Revocations, toRevocation(rev))
	}
	return out, nil
}

// parseReason returns "" for an unset reason, and not the default reason.
func parseReason(name string) (node.Reason, error) {
	if name == "" {
		return "", nil
	}
	return node.ParseReason(name)
}

// maxWait is the longest wait of a call for a receipt.
const maxWait = time.Hour

func parseWait(d *durationpb.Duration) (time.Duration, error) {
	wait := d.AsDuration()
	if wait < 0 || wait > maxWait {
		return 0, node.Invalid("wait", "from 0s to %v, is %v", node.Duration(maxWait), node.Duration(wait))
	}
	return wait, nil
}

func checkID(id string) error {
	if parsed, err := uuid.Parse(id); err != nil || parsed.String() != id {
		return node.Invalid("id", "%q: must be a UUID in lower case, as espm returned it", short(id))
	}
	return nil
}

func (s *revocations) GetRevocation(ctx context.Context, req *espmv1.GetRevocationRequest) (*espmv1.GetRevocationResponse, error) {
	if err := checkID(req.GetId()); err != nil {
		return nil, err
	}
	r, err := s.registry.Revocation(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return &espmv1.GetRevocationResponse{Revocation: toRevocation(r)}, nil
}

func (s *revocations) ListRevocations(ctx context.Context, req *espmv1.ListRevocationsRequest) (*espmv1.ListRevocationsResponse, error) {
	f := store.RevocationFilter{Open: req.GetPending(), Failed: req.GetFailed(), Impossible: req.GetImpossible()}
	if req.GetCertname() != "" {
		var err error
		if f.Certname, err = node.ParseCertname(req.GetCertname()); err != nil {
			return nil, err
		}
	}
	name, limit, after, err := paging(f, req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	page, place, err := s.registry.ListRevocations(ctx, f, after, limit)
	if err != nil {
		return nil, err
	}
	out := &espmv1.ListRevocationsResponse{Revision: page.Revision, AuthorityFailure: toFailure(s.registry.Down(ctx))}
	to := func(r node.Revocation) (*espmv1.Revocation, error) { return toRevocation(r), nil }
	var next string
	out.Revocations, next, err = convert(page, to, place)
	out.NextPageToken = pageToken(name, next)
	return out, err
}

func (s *revocations) RetryRevocation(ctx context.Context, req *espmv1.RetryRevocationRequest) (*espmv1.RetryRevocationResponse, error) {
	if err := checkID(req.GetId()); err != nil {
		return nil, err
	}
	r, err := s.registry.RetryRevocation(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return &espmv1.RetryRevocationResponse{Revocation: toRevocation(r)}, nil
}

func (s *revocations) DropRevocation(ctx context.Context, req *espmv1.DropRevocationRequest) (*espmv1.DropRevocationResponse, error) {
	if err := checkID(req.GetId()); err != nil {
		return nil, err
	}
	r, err := s.registry.DropRevocation(ctx, req.GetId(), req.GetComment())
	if err != nil {
		return nil, err
	}
	return &espmv1.DropRevocationResponse{Revocation: toRevocation(r)}, nil
}

func (s *revocations) WatchRevocations(req *espmv1.WatchRevocationsRequest, stream grpc.ServerStreamingServer[espmv1.WatchRevocationsResponse]) error {
	ctx := stream.Context()
	if req.GetCertname() != "" {
		if _, err := node.ParseCertname(req.GetCertname()); err != nil {
			return err
		}
	}
	after, err := watchFrom(ctx, s.registry, req.GetAfterRevision())
	if err != nil {
		return err
	}
	for ev, err := range s.registry.WatchRevocations(ctx, after) {
		if err != nil {
			return err
		}
		if of := req.GetCertname(); of != "" && of != string(ev.Revocation.Certname) {
			continue
		}
		if err := stream.Send(&espmv1.WatchRevocationsResponse{Revision: ev.Revision, Revocation: toRevocation(ev.Revocation)}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func toRevocation(r node.Revocation) *espmv1.Revocation {
	out := &espmv1.Revocation{
		Id:         r.ID,
		Serial:     string(r.Serial),
		Certname:   string(r.Certname),
		Uid:        string(r.UID),
		Owner:      r.Owner,
		State:      espmv1.RevocationState_REVOCATION_STATE_PENDING,
		CreateTime: toTime(r.CreatedAt),
		Reason:     string(r.Reason),
		Comment:    r.Comment,
		Revision:   r.Revision,
	}
	if r.Receipt != nil {
		out.State = espmv1.RevocationState_REVOCATION_STATE_REVOKED
		out.PublishTime = toTime(r.Receipt.PublishedAt)
		out.PublishedTo = r.Receipt.PublishedTo
		out.CrlNumber = r.Receipt.CRLNumber
	}
	if r.Drop != nil {
		out.State = espmv1.RevocationState_REVOCATION_STATE_DROPPED
		out.DropComment = r.Drop.Comment
		out.DropTime = toTime(r.Drop.DroppedAt)
	}
	if r.Impossible != nil {
		out.State = espmv1.RevocationState_REVOCATION_STATE_IMPOSSIBLE
		out.ImpossibleReason = r.Impossible.Reason
		out.ImpossibleTime = toTime(r.Impossible.FoundAt)
	}
	out.Failure = toFailure(r.Failure)
	return out
}

func toFailure(f *node.Failure) *espmv1.RevocationFailure {
	if f == nil {
		return nil
	}
	return &espmv1.RevocationFailure{
		Error:     f.Error,
		Attempts:  int32(min(f.Attempts, math.MaxInt32)), // #nosec G115 -- bounded here
		FailTime:  toTime(f.FailedAt),
		RetryTime: toTime(f.RetryAt),
	}
}
