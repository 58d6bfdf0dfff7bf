package daemon

import (
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/enc/encclient"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// puppet asks for a catalog as Puppet Server does, and wants one.
func puppet(t *testing.T, c config.Config, name string) {
	t.Helper()
	client := encclient.Client{Socket: c.ENC.Socket, DB: c.Store.Path}
	if a := client.Ask(name, time.Now().Add(time.Minute)); a.Status != enc.StatusYAML {
		t.Fatalf("%s: %s", name, a.Text)
	}
}

func launch(t *testing.T, conn *grpc.ClientConn, name string) {
	t.Helper()
	_, err := espmv1.NewNodeServiceClient(conn).ProvisionNode(t.Context(),
		&espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: name}, ClaimWithin: durationpb.New(time.Hour)}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
}

// shown checks whether a node counts as seen and as claimed.
func shown(t *testing.T, conn *grpc.ClientConn, name string, seen, claimed bool) *espmv1.Node {
	t.Helper()
	resp, err := espmv1.NewNodeServiceClient(conn).GetNode(t.Context(), &espmv1.GetNodeRequest{Certname: name})
	if err != nil {
		t.Fatal(err)
	}
	n := resp.GetNode()
	if (n.GetLastSeenTime() != nil) != seen || (n.GetClaimTime() != nil) != claimed || n.GetClaimDeadlineTime() == nil {
		t.Errorf("want it seen: %v, claimed: %v, got %v", seen, claimed, n)
	}
	return n
}

func TestSightings(t *testing.T) {
	_, c := trial(t)
	conn, stop := start(t, c)
	for _, name := range []string{"a.test", "b.test", "c.test"} {
		launch(t, conn, name)
	}
	shown(t, conn, "a.test", false, false)
	puppet(t, c, "a.test")
	puppet(t, c, "a.test")
	inspect := encclient.Client{Socket: c.ENC.Socket, DB: c.Store.Path, Inspect: true}
	inspect.Run("b.test", io.Discard)
	before := shown(t, conn, "a.test", true, true)
	shown(t, conn, "b.test", false, false)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	puppet(t, c, "c.test") // from the file: nobody counts
	conn, _ = start(t, c)
	after := shown(t, conn, "a.test", true, true)
	if !after.GetLastSeenTime().AsTime().Equal(before.GetLastSeenTime().AsTime()) || after.GetRevision() != before.GetRevision() {
		t.Errorf("after an orderly stop: %v, before it: %v", after, before)
	}
	shown(t, conn, "c.test", false, false)
	puppet(t, c, "c.test")
	shown(t, conn, "c.test", true, true)
}

// A daemon that is killed after the first catalog was answered has the claim.
func TestKilledAfterTheFirstCatalog(t *testing.T) {
	dir, c := trial(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childConfig+"="+dir+"/espm.yaml")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); _ = cmd.Wait() })
	conn, err := grpc.NewClient(c.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	launch(t, conn, "a.test")
	puppet(t, c, "a.test")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	again, _ := start(t, c)
	shown(t, again, "a.test", true, true)
}
