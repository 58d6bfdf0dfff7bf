package crash

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	"github.com/espm-project/espm/internal/store/storetest"
	"github.com/espm-project/espm/test/health"
	"github.com/espm-project/espm/test/testbed"
)

// migratedNodes is the number of nodes in the migrated store. `make migrate` sets it to a million.
const migratedNodes = "ESPM_MIGRATE_NODES"

// TestMigratedWhileTheENCIsAnswered migrates a store of the first release with a daemon that is killed repeatedly.
// Meanwhile espm-enc asks like Puppet Server. No look-up fails, and nothing is lost.
func TestMigratedWhileTheENCIsAnswered(t *testing.T) {
	nodes := 3000
	if text := os.Getenv(migratedNodes); text != "" {
		var err error
		if nodes, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	dir := testbed.Dir(t)
	newCA(t, dir)
	bin := testbed.Build(t, "cmd/espm", "cmd/espm-enc")
	d := &target{dir: dir, binary: filepath.Join(bin, "espm")}
	d.configure(t)
	grow(t, dir, nodes)

	asking, stop := context.WithCancel(t.Context())
	defer stop()
	var asked atomic.Int64
	var asker sync.WaitGroup
	asker.Go(func() {
		for asking.Err() == nil {
			look(asking, t, filepath.Join(bin, "espm-enc"), dir, storetest.Grown(rand.N(nodes)))
			asked.Add(1)
			pause(asking, 100*time.Millisecond)
		}
	})
	began := time.Now()
	wait := 30 * time.Millisecond
	for kills := 0; ; kills++ { // each life is longer than the one before: in the end one comes through
		d.start(t)
		if serves(t, d, wait) {
			t.Logf("%d nodes, %d kills, %v until the API was served", nodes, kills, time.Since(began).Round(time.Millisecond))
			break
		}
		d.kill(t)
		wait += wait / 4
	}
	pause(t.Context(), time.Second)
	stop()
	asker.Wait()
	d.stop(t)
	t.Logf("%d look-ups", asked.Load())
	checkMigrated(t, dir, nodes)
}

func grow(t *testing.T, dir string, nodes int) {
	t.Helper()
	path := filepath.Join(dir, "espm.db")
	storetest.Released(t, path)
	engine, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	if err := storetest.Grow(t.Context(), engine, nodes); err != nil {
		t.Fatal(err)
	}
}

// look runs espm-enc like Puppet Server.
func look(ctx context.Context, t *testing.T, program, dir, name string) {
	out, err := exec.Command(program, "--socket", filepath.Join(dir, "enc.sock"), "--db", filepath.Join(dir, "espm.db"), name).Output()
	if ctx.Err() == nil && (err != nil || !strings.Contains(string(out), `"ssh"`) || !strings.Contains(string(out), `"nginx"`)) {
		t.Errorf("espm-enc %s: %v\n%s", name, err, out)
	}
}

// serves reports whether the daemon serves the API in time.
func serves(t *testing.T, d *target, wait time.Duration) bool {
	conn, err := grpc.NewClient(d.address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	return health.Serves(ctx, conn) == nil
}

func checkMigrated(t *testing.T, dir string, nodes int) {
	t.Helper()
	path := filepath.Join(dir, "espm.db")
	if _, err := os.Stat(path + ".schema1"); err != nil {
		t.Errorf("the old store is not kept: %v", err)
	}
	for file, want := range map[string]bool{path: false, path + ".schema1": true} {
		engine, err := bolt.Open(file, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := store.Open(t.Context(), engine)
		if err != nil {
			t.Fatal(err)
		}
		if outdated, err := s.Outdated(t.Context()); err != nil || outdated != want {
			t.Errorf("%s: outdated %v, %v, want %v", filepath.Base(file), outdated, err, want)
		}
		members := 0
		for _, err := range s.Members(t.Context(), "web") {
			if err != nil {
				t.Fatal(err)
			}
			members++
		}
		if members != nodes+2 {
			t.Errorf("%s: %d members of the group web, want %d", filepath.Base(file), members, nodes+2)
		}
		for _, i := range []int{0, nodes / 2, nodes - 1} {
			n, err := s.Node(t.Context(), node.Certname(storetest.Grown(i)))
			if err != nil || len(n.Groups) != 2 || n.Labels["team"] != "shop" || len(n.Serials) != 1 {
				t.Errorf("%s: %+v, %v", filepath.Base(file), n, err)
			}
		}
		if err := engine.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
