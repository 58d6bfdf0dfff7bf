package bolt

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/store/storetest"
)

// childEnv makes the test binary commit to the store it names, until killed.
const childEnv = "ESPM_TEST_COMMIT_TO"

const childWriters = 16

// commitUntilKilled tells every commit it was answered, one a line. It is
// called instead of the tests.
func commitUntilKilled(path string) int {
	e, err := Open(path, Options{History: storetest.MinHistory})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	failed := make(chan error)
	for w := range childWriters {
		go func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%d/%d/%d", os.Getpid(), w, i)
				revision, err := e.Commit(context.Background(), put(key, strings.Repeat(key, 1+i%300)))
				if err != nil {
					failed <- err
					return
				}
				fmt.Printf("%s %d\n", key, revision) // one write, which a pipe takes whole
			}
		}()
	}
	fmt.Fprintln(os.Stderr, <-failed)
	return 1
}

// TestKill kills a process that commits, again and again, and holds the store
// to every commit that was answered.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "espm.db")
	answered := map[string]int64{}
	newest := int64(0)
	for round := range 10 {
		lines := 1 + rand.IntN(400)
		for key, revision := range killAfter(t, path, lines) {
			if answered[key] != 0 || revision <= newest {
				t.Errorf("round %d: %s at %d, after %d at %d", round, key, revision, answered[key], newest)
			}
			answered[key] = revision
		}
		e := openAt(t, path)
		checkFile(t, e)
		for key, revision := range answered {
			r, err := e.Get(t.Context(), key)
			if err != nil || r.Revision != revision || len(r.Value)%len(key) != 0 {
				t.Fatalf("round %d: %s was answered with %d, but get gives %d, %v", round, key, revision, r.Revision, err)
			}
		}
		_, revision, err := e.List(t.Context(), "", "", 1)
		if err != nil || revision < newest {
			t.Fatalf("round %d: store is at revision %d, %v; before it was at %d", round, revision, err, newest)
		}
		newest = revision
		e.Close()
	}
}

// killAfter runs the child, kills it after it has answered so many commits, and
// returns all that it answered.
func killAfter(t *testing.T, path string, lines int) map[string]int64 {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+path)
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	answered := map[string]int64{}
	scanner := bufio.NewScanner(stdout)
	for scanner.Scan() {
		var key string
		var revision int64
		if _, err := fmt.Sscanf(scanner.Text(), "%s %d", &key, &revision); err != nil {
			t.Errorf("child wrote %q", scanner.Text())
		}
		answered[key] = revision
		if lines--; lines == 0 {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := child.Wait(); err == nil || lines > 0 {
		t.Fatalf("child ended by itself: %v", err)
	}
	return answered
}
