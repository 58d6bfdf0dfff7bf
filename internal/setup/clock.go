package setup

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/espm-project/espm/internal/doctor"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// askClock asks the daemon on a local socket whether it believes the clock, and which valid certificates have impossible dates.
func askClock(ctx context.Context, socket string) (clock doctor.Clock, err error) {
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return clock, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	answer, err := espmv1.NewClockServiceClient(conn).GetClock(ctx, &espmv1.GetClockRequest{})
	if err != nil {
		return clock, err
	}
	if clock.Doubt = answer.GetClock().GetDoubt(); clock.Doubt != "" {
		return clock, nil // by such a clock other certificates seem to begin in the future
	}
	req := &espmv1.ListCertificatesRequest{PageSize: 1000, ImpossibleDates: true}
	for {
		page, err := espmv1.NewCertificateServiceClient(conn).ListCertificates(ctx, req)
		if err != nil {
			return clock, err
		}
		for _, c := range page.GetCertificates() {
			if c.GetState() == espmv1.CertificateState_CERTIFICATE_STATE_VALID {
				clock.Impossible = append(clock.Impossible, doctor.Certificate{
					Serial: c.GetSerial(), Certname: c.GetCertname(), NotBefore: c.GetNotBeforeTime().AsTime(), NotAfter: c.GetNotAfterTime().AsTime(),
				})
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			return clock, nil
		}
	}
}
