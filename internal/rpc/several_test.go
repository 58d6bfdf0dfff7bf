package rpc

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// The API lists all certificates of a node, newest first; serial and revocation stay those of the newest.
func TestSeveralCertificates(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	r.provision(t, "a.test", "")
	r.foreign(t, "a.test")
	got, err := r.imports(ctx, &espmv1.ImportCertificatesRequest{Certnames: []string{"a.test"}})
	if err != nil || len(got) != 2 || got[0].GetUid() == "" || got[0].GetUid() != got[1].GetUid() {
		t.Fatalf("imported %v, %v", got, err)
	}
	shown, err := r.nodes.GetNode(ctx, &espmv1.GetNodeRequest{Certname: "a.test"})
	if err != nil {
		t.Fatal(err)
	}
	serials, certs := shown.GetNode().GetSerials(), shown.GetCertificates()
	if len(serials) != 2 || serials[0] != shown.GetNode().GetSerial() || len(certs) != 2 {
		t.Fatalf("got %v", shown)
	}
	for i, c := range certs {
		if c.GetSerial() != serials[i] || c.GetState() != espmv1.CertificateState_CERTIFICATE_STATE_VALID || c.GetNotAfterTime() == nil || len(c.GetCertificatePem()) != 0 {
			t.Errorf("%d: %v", i, c)
		}
	}
	resp, err := r.revocations.RevokeCertificate(ctx, &espmv1.RevokeCertificateRequest{Certname: "a.test", Wait: durationpb.New(time.Minute)})
	if err != nil || len(resp.GetRevocations()) != 2 || resp.GetRevocation().GetSerial() != serials[0] || resp.GetRevocations()[1].GetSerial() != serials[1] {
		t.Fatalf("got %v, %v", resp, err)
	}
	for _, rev := range resp.GetRevocations() {
		if rev.GetState() != revokedState {
			t.Errorf("got %v", rev)
		}
	}
}
