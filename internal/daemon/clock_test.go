package daemon

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/metrics"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// dated has the store's newest record be of another time. To a daemon that is as if its clock was wrong by as much, the
// other way.
func dated(t *testing.T, c config.Config, newest time.Time) {
	t.Helper()
	engine, err := bolt.Open(c.Store.Path, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	s, err := store.Open(t.Context(), engine)
	if err != nil {
		t.Fatal(err)
	}
	change := store.NewChange()
	change.Unaudited()
	change.PutClock(store.Clock{Newest: newest})
	if _, err := s.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
}

// A daemon that starts with a clock in doubt answers the ENC, signs nothing and leaves the CRL, whatever waits to be
// revoked. An admin on the local socket ends that.
func TestClockInDoubt(t *testing.T) {
	for name, newest := range map[string]time.Time{
		"behind": time.Now().AddDate(7, 0, 0),
		"ahead":  time.Now().AddDate(-6, 0, 0),
	} {
		t.Run(name, func(t *testing.T) {
			_, c := trial(t)
			conn, stop := start(t, c)
			_, err := espmv1.NewNodeServiceClient(conn).ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "web1.test"}}, grpc.WaitForReady(true))
			if err := errors.Join(err, stop()); err != nil {
				t.Fatal(err)
			}
			crl := filepath.Join(c.Authority.Directory.Path, "ca_crl.pem")
			before, err := os.ReadFile(crl)
			if err != nil {
				t.Fatal(err)
			}
			dated(t, c, newest)

			conn, url := measured(t, &c)
			nodes, clocks := espmv1.NewNodeServiceClient(conn), espmv1.NewClockServiceClient(conn)
			_, err = nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "web2.test"}})
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the clock says") || !strings.Contains(err.Error(), "web2.test") {
				t.Errorf("provision: %v", err)
			}
			puppet(t, c, "web1.test")
			gone, err := nodes.TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{Certname: "web1.test", Wait: durationpb.New(300 * time.Millisecond)})
			if err != nil || gone.GetRevocations()[0].GetState() != espmv1.RevocationState_REVOCATION_STATE_PENDING {
				t.Errorf("terminate: %v, %v", gone, err)
			}
			code, body := fetch(t, url+"/readyz")
			var h metrics.Health
			if err := json.Unmarshal([]byte(body), &h); err != nil || code != http.StatusServiceUnavailable || !h.Live || !strings.Contains(h.Clock, "the newest record") {
				t.Errorf("/readyz: %d, %s, %v", code, body, err)
			}
			if _, text := fetch(t, url+"/metrics"); !strings.Contains(text, "\nespm_clock_believed 0\n") {
				t.Error("the metrics say that the clock is believed")
			}
			if after, err := os.ReadFile(crl); err != nil || string(after) != string(before) {
				t.Errorf("the CRL was changed, %v", err)
			}

			answer, err := clocks.AcceptClock(t.Context(), &espmv1.AcceptClockRequest{})
			if err != nil || answer.GetClock().GetDoubt() != "" {
				t.Fatalf("accept: %v, %v", answer, err)
			}
			if _, err := nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "web2.test"}}); err != nil {
				t.Errorf("provision: %v", err)
			}
			again, err := nodes.TerminateNode(t.Context(), &espmv1.TerminateNodeRequest{Certname: "web1.test", Uid: gone.GetNode().GetUid(), Wait: durationpb.New(time.Minute)})
			if err != nil || again.GetRevocations()[0].GetState() != espmv1.RevocationState_REVOCATION_STATE_REVOKED {
				t.Errorf("the revocation: %v, %v", again, err)
			}
		})
	}
}
