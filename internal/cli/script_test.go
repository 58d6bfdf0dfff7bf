package cli

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/espm-project/espm/internal/enc/encclient"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	"github.com/espm-project/espm/test/health"
	"github.com/espm-project/espm/test/need"
	"github.com/espm-project/espm/test/testbed"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"espm": func() {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			os.Exit(Main(ctx, os.Args[1:], os.Stdout, os.Stderr))
		},
		"espm-enc": func() { os.Exit(encclient.Main(os.Args[1:], os.Stdout)) },
	})
}

// TestScript runs the manual: each script is a session of an operator, with a
// daemon of its own.
func TestScript(t *testing.T) {
	root := testbed.Dir(t)
	fixtures, err := filepath.Abs("../serverfile/testdata")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		WorkdirRoot:        root,
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("ESPM_ADDRESS", "unix://"+e.WorkDir+"/d/run/espm.sock")
			e.Setenv("ESPM_ENC_SOCKET", e.WorkDir+"/d/run/enc.sock")
			e.Setenv("ESPM_DB", e.WorkDir+"/d/espm.db")
			port, err := freePort()
			if err != nil {
				return err
			}
			e.Setenv("NETWORK", port)
			e.Setenv("FIXTURES", fixtures)
			e.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector holds up every exit by a second
			return nil
		},
		Condition: need.Condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"dated":   dated,
			"serving": serving,
			"exits":   exits,
			"field":   field,
			"mode":    mode,
			"mends":   mends,
		},
	})
}

// freePort is an address that nobody listens on now, for a daemon's network listener.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return "localhost:" + port, errors.Join(err, l.Close())
}

// dated has a store's newest record be of a time that is as far ahead as the duration says, or behind.
func dated(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: dated STORE DURATION")
	}
	ahead, err := time.ParseDuration(args[1])
	ts.Check(err)
	engine, err := bolt.Open(ts.MkAbs(args[0]), bolt.Options{})
	ts.Check(err)
	defer engine.Close()
	s, err := store.Open(context.Background(), engine)
	ts.Check(err)
	c := store.NewChange()
	c.Unaudited()
	c.PutClock(store.Clock{Newest: time.Now().Add(ahead)})
	_, err = s.Commit(context.Background(), c)
	ts.Check(err)
}

// serving waits until the daemon of $ESPM_ADDRESS answers.
func serving(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: serving")
	}
	conn, err := grpc.NewClient(ts.Getenv("ESPM_ADDRESS"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	ts.Check(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := health.Serves(ctx, conn); err != nil {
		ts.Fatalf("the daemon does not serve: %v", err)
	}
}

// exits runs a command that must end with the exit code given.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARGUMENT...]")
	}
	got := "exit status " + args[0]
	switch err := ts.Exec(args[1], args[2:]...); {
	case err == nil && args[0] != "0":
		ts.Fatalf("exit status 0, want %s", args[0])
	case err != nil && err.Error() != got:
		ts.Fatalf("%v, want %s", err, got)
	}
}

// field compares a part of the JSON on the last standard output: a path of
// keys and indexes with dots, and the JSON it must have. With an environment
// variable's name in place of the JSON, behind >, it keeps the string found there.
func field(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: field PATH JSON|>VARIABLE")
	}
	var at any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &at))
	for key := range strings.SplitSeq(args[0], ".") {
		switch v := at.(type) {
		case map[string]any:
			at = v[key]
		case []any:
			var i int
			ts.Check(json.Unmarshal([]byte(key), &i))
			if i >= len(v) {
				ts.Fatalf("%s: there is no item %d", args[0], i)
			}
			at = v[i]
		default:
			ts.Fatalf("%s: nothing is below a %T", args[0], at)
		}
	}
	if name, ok := strings.CutPrefix(args[1], ">"); ok {
		text, isText := at.(string)
		if !isText || text == "" {
			ts.Fatalf("%s is %v, want a string", args[0], at)
		}
		ts.Setenv(name, text)
		return
	}
	var want any
	ts.Check(json.Unmarshal([]byte(args[1]), &want))
	if !reflect.DeepEqual(at, want) {
		ts.Fatalf("%s is %v, want %v", args[0], at, want)
	}
}

// mends wants the doctor to find a thing wrong, before what comes of it, runs the command
// that is to mend it, and wants all to be well then.
func mends(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: mends CONFIG CHECK SEVERITY")
	}
	examine := func() (wrong []doctorFinding) {
		_ = ts.Exec("espm", "doctor", "--config", args[0], "-o", "json") // its exit code is the finding's
		var all []doctorFinding
		ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &all))
		for _, f := range all {
			if f.Severity != "ok" {
				wrong = append(wrong, f)
			}
		}
		return wrong
	}
	wrong := examine()
	if len(wrong) == 0 || wrong[0].Check != args[1] || wrong[0].Severity != args[2] || wrong[0].Mend == "" {
		ts.Fatalf("found %+v, want a %s of %s first, with a way to mend it", wrong, args[2], args[1])
	}
	ts.Check(ts.Exec("sh", "-c", wrong[0].Mend))
	if wrong = examine(); len(wrong) > 0 {
		ts.Fatalf("still wrong: %+v", wrong)
	}
}

type doctorFinding struct{ Check, Severity, What, Mend string }

// mode checks a file's permissions.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode MODE FILE")
	}
	info, err := os.Stat(filepath.Clean(ts.MkAbs(args[1])))
	ts.Check(err)
	if got := info.Mode().Perm().String(); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}
