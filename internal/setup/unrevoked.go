package setup

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/doctor"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// unrevoked asks the daemon for the unexpired certificates that the CA could not revoke.
func unrevoked(ctx context.Context, socket string) (all []doctor.Unrevoked, err error) {
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	req := &espmv1.ListRevocationsRequest{PageSize: 1000, Impossible: true}
	for {
		page, err := espmv1.NewRevocationServiceClient(conn).ListRevocations(ctx, req)
		if err != nil {
			return nil, err
		}
		for _, r := range page.GetRevocations() {
			u := doctor.Unrevoked{Serial: r.GetSerial(), Certname: r.GetCertname()}
			cert, err := espmv1.NewCertificateServiceClient(conn).GetCertificate(ctx, &espmv1.GetCertificateRequest{Serial: u.Serial})
			if status.Code(err) == codes.NotFound {
				continue // the store has removed it, as it has expired
			}
			if err != nil {
				return nil, err
			}
			u.NotAfter = cert.GetCertificate().GetNotAfterTime().AsTime()
			again := cert.GetCertificate().GetRevocation().GetId() != r.GetId() // it was ordered anew
			if !again && u.NotAfter.After(time.Now()) {
				all = append(all, u)
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			return all, nil
		}
	}
}
