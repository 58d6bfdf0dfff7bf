package rpc

import (
	"context"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

type authority struct {
	espmv1.UnimplementedAuthorityServiceServer
	registry *registry.Registry
}

func (s *authority) GetAuthorityStatus(ctx context.Context, _ *espmv1.GetAuthorityStatusRequest) (*espmv1.GetAuthorityStatusResponse, error) {
	status, err := s.registry.Authority.Status(ctx)
	if err != nil {
		return nil, err
	}
	pending, oldest, err := s.registry.Store.CountPending(ctx)
	if err != nil {
		return nil, err
	}
	out := &espmv1.GetAuthorityStatusResponse{
		Subject:            status.Subject,
		NotAfterTime:       toTime(status.NotAfter),
		Crl:                toCRLStatus(status.CRL),
		DownloadBytes:      int64(status.Bytes),
		PendingRevocations: int64(pending),
		AuthorityFailure:   toFailure(s.registry.Revocations.Down()),
	}
	if status.CRL.Entries > 0 {
		out.GrowthBytesPerDay = int64(float64(status.Bytes) / float64(status.CRL.Entries) * float64(status.CRL.Recent) / ca.Recently.Hours() * 24)
	}
	if oldest != nil {
		out.OldestPendingTime = toTime(oldest.CreatedAt)
	}
	for _, c := range status.Foreign {
		out.ForeignCrls = append(out.ForeignCrls, toCRLStatus(c))
	}
	for _, f := range status.Files {
		out.Files = append(out.Files, &espmv1.CrlFile{Path: f.Path, Error: f.Error, SinceTime: toTime(f.Since)})
	}
	return out, nil
}

func toCRLStatus(c ca.CRLStatus) *espmv1.CrlStatus {
	return &espmv1.CrlStatus{
		Issuer:         c.Issuer,
		Number:         c.Number,
		Entries:        int64(c.Entries),
		ThisUpdateTime: toTime(c.ThisUpdate),
		NextUpdateTime: toTime(c.NextUpdate),
	}
}
