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
	status, err := s.registry.AuthorityStatus(ctx)
	if err != nil {
		return nil, err
	}
	pending, oldest, err := s.registry.CountPending(ctx)
	if err != nil {
		return nil, err
	}
	out := &espmv1.GetAuthorityStatusResponse{
		Subject:            status.Subject,
		NotAfterTime:       toTime(status.NotAfter),
		Crl:                toCRLStatus(status.CRL),
		DownloadBytes:      int64(status.Bytes),
		PendingRevocations: int64(pending),
		GrowthBytesPerDay:  growth(status.CRL),
		AuthorityFailure:   toFailure(s.registry.Down(ctx)),
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

// growth returns the bytes a day by which recent entries made the CRL grow. All entries have about the same size, and
// the rest of a CRL does not grow.
func growth(c ca.CRLStatus) int64 {
	if c.Entries == 0 {
		return 0
	}
	perDay := float64(c.Recent) / (ca.Recently.Hours() / 24)
	return int64(float64(c.EntryBytes) / float64(c.Entries) * perDay)
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
