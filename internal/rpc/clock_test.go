package rpc

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/espm-project/espm/internal/clock"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// Only an admin whom the local socket knows accepts a clock: a stolen token can't.
func TestAcceptClock(t *testing.T) {
	r := newRig(t)
	client := espmv1.NewClockServiceClient(r.conn)
	if err := r.clock.Check(); err != nil {
		t.Fatal(err)
	}
	r.hostAhead.Store(int64(-2 * clock.MaxBehind))
	got, err := client.GetClock(r.token(t, "r", espmv1.Role_ROLE_READER, nil), &espmv1.GetClockRequest{})
	if c := got.GetClock(); err != nil || !strings.Contains(c.GetDoubt(), "the clock says") || c.GetLatestRecordTime().AsTime().Before(c.GetNowTime().AsTime()) {
		t.Errorf("got %v, %v", got, err)
	}
	_, err = client.AcceptClock(r.token(t, "a", espmv1.Role_ROLE_ADMIN, nil), &espmv1.AcceptClockRequest{})
	if codeOf(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "on the local socket without a token") {
		t.Errorf("with an admin's token: %v", err)
	}
	if r.clock.Check() == nil {
		t.Error("it is believed")
	}
	accepted, err := client.AcceptClock(t.Context(), &espmv1.AcceptClockRequest{})
	if err != nil || accepted.GetClock().GetDoubt() != "" || r.clock.Check() != nil {
		t.Errorf("got %v, %v; then %v", accepted, err, r.clock.Check())
	}
}

// The certificates that a wrong clock left are listed, and no others.
func TestImpossibleDates(t *testing.T) {
	r := newRig(t)
	made := r.provision(t, "good.test", "")
	good, err := r.store.Certificate(t.Context(), node.Serial(made.GetNode().GetSerial()))
	if err != nil {
		t.Fatal(err)
	}
	status, err := espmv1.NewAuthorityServiceClient(r.conn).GetAuthorityStatus(t.Context(), &espmv1.GetAuthorityStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	const day = 24 * time.Hour
	begin, end := good.NotBefore, status.GetNotAfterTime().AsTime()
	c := store.NewChange()
	c.Unaudited()
	for serial, dates := range map[node.Serial][2]time.Time{
		"0A01": {begin.AddDate(-7, 0, 0), begin.AddDate(-2, 0, 0)}, // long before the CA
		"0A02": {begin.AddDate(6, 0, 0), begin.AddDate(7, 0, 0)},   // in the future
		"0A03": {begin, end.Add(time.Second)},                      // longer than the CA
		"0A04": {begin.Add(-day / 2), end},                         // Puppet Server's, soon after it made the CA
	} {
		cert := good
		cert.Serial, cert.NotBefore, cert.NotAfter, cert.Revision = serial, dates[0], dates[1], 0
		c.PutCertificate(cert)
	}
	if _, err := r.store.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	var got []string
	for req := (&espmv1.ListCertificatesRequest{PageSize: 2, ImpossibleDates: true}); ; {
		page, err := r.certs.ListCertificates(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range page.GetCertificates() {
			got = append(got, c.GetSerial())
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if !slices.Equal(got, []string{"0A01", "0A02", "0A03"}) {
		t.Errorf("listed are %q", got)
	}
}
