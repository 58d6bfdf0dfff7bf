package snapshot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/backup"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/site"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	"github.com/espm-project/espm/test/testbed"
)

// A backup that is whole as an archive, but does not hold what it should, replaces nothing.
func TestRestoreProves(t *testing.T) {
	dir, c := trial(t)
	kept := testbed.Contents(t, dir)
	whole := func(edit func(name string, data []byte) []byte, records map[string]int) io.Reader {
		var b bytes.Buffer
		w := backup.NewWriter(&b, backup.Manifest{Revision: 2, Records: records, PrivateKey: true})
		for _, name := range []string{"espm.db", "ca/ca_crt.pem", "ca/ca_key.pem", "ca/ca_crl.pem"} {
			data := edit(name, kept[filepath.Join(dir, name)])
			if err := w.Add(name, 0o640, int64(len(data)), bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	right := map[string]int{"schema": 1, "enc": 1}
	asIs := func(_ string, data []byte) []byte { return data }
	_, other := trial(t)
	foreign, err := os.ReadFile(filepath.Join(other.Authority.Directory.Path, "ca_key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for what, c2 := range map[string]struct {
		r    io.Reader
		says string
	}{
		"store is none": {whole(func(name string, data []byte) []byte {
			if name == "espm.db" {
				return []byte("nothing")
			}
			return data
		}, right), "damaged"},
		"other counts": {whole(asIs, map[string]int{"schema": 1, "enc": 1, "node": 9}), "node:9"},
		"another's key": {whole(func(name string, data []byte) []byte {
			if name == "ca/ca_key.pem" {
				return foreign
			}
			return data
		}, right), "does not belong to"},
		"no CRL": {whole(func(name string, data []byte) []byte {
			if name == "ca/ca_crl.pem" {
				return nil
			}
			return data
		}, right), "holds no CRL"},
	} {
		_, err := Restore(t.Context(), c, c2.r, true)
		if err == nil || !strings.Contains(err.Error(), c2.says) || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("%s: %v", what, err)
		}
		for path, data := range testbed.Contents(t, dir) {
			if !bytes.Equal(data, kept[path]) && filepath.Base(path) != "espm.lock" {
				t.Errorf("%s: %s was changed, or left", what, path)
			}
		}
	}
	// What a restore that was killed left is no hindrance.
	half := filepath.Join(c.Authority.Directory.Path+staged, "signed")
	if err := errors.Join(os.MkdirAll(half, 0o750), os.WriteFile(c.Store.Path+staged, []byte("half"), 0o600), os.WriteFile(filepath.Join(half, "x.pem"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if done, err := Restore(t.Context(), c, whole(asIs, right), true); err != nil || !done.Held.Key || len(done.Kept) != 2 {
		t.Errorf("%+v, %v", done, err)
	}
	if site.Exists(filepath.Join(c.Authority.Directory.Path, "signed", "x.pem")) || site.Exists(c.Store.Path+staged) || site.Exists(c.Authority.Directory.Path+staged) {
		t.Error("the half of it came in, or stayed")
	}
}

// slowEngine is at a snapshot until it is let go.
type slowEngine struct{ began, let chan struct{} }

func (e slowEngine) Snapshot(context.Context, io.Writer) error {
	close(e.began)
	<-e.let
	return errors.New("no room")
}

func TestBackupsAreForAdmins(t *testing.T) {
	_, c := trial(t)
	for who, ctx := range map[string]context.Context{
		"nobody": t.Context(), "a reader": node.WithCaller(t.Context(), node.Caller{Name: "token:r", Role: node.Reader}),
	} {
		var b bytes.Buffer
		if err := NewMaker(c, slowEngine{}).Snapshot(ctx, &b, false); !errors.Is(err, node.ErrNotPermitted) || b.Len() > 0 {
			t.Errorf("%s: %d bytes, %v", who, b.Len(), err)
		}
	}
}

func TestOneBackupAtATime(t *testing.T) {
	_, c := trial(t)
	e := slowEngine{make(chan struct{}), make(chan struct{})}
	s := NewMaker(c, e)
	first := make(chan error, 1)
	go func() { first <- s.Snapshot(node.AsSelf(t.Context()), io.Discard, false) }()
	<-e.began
	if err := s.Snapshot(node.AsSelf(t.Context()), io.Discard, false); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("a second backup: %v", err)
	}
	close(e.let)
	if err := <-first; !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "no room") {
		t.Errorf("a full disk: %v", err)
	}
	if left, _ := filepath.Glob(c.Store.Path + spoolName + "*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// A chain that was not whole when the backup was made is told, and does not stop the restore.
func TestRestoreWalksAudit(t *testing.T) {
	dir, c := trial(t)
	engine, err := bolt.Open(c.Store.Path, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.New(t.Context(), engine)
	if err != nil {
		t.Fatal(err)
	}
	line := node.SealedLine{Seq: 1, Prev: audit.Genesis}
	line.Hash = audit.Hash(line)
	altered := line
	altered.Principal = "somebody else"
	head := node.AuditHead{Seq: 1, Hash: line.Hash}
	if _, err := s.Seal(t.Context(), store.ChainStep{New: head, Join: []node.SealedLine{altered}}); err != nil {
		t.Fatal(err)
	}
	if err := engine.Close(); err != nil {
		t.Fatal(err)
	}
	var revision int64
	var records map[string]int
	err = withStore(t.Context(), c.Store.Path, func(_ *bolt.Reader, v store.View) (err error) {
		revision, records, err = count(t.Context(), v)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := backup.NewWriter(&b, backup.Manifest{Revision: revision, Records: records, PrivateKey: true})
	kept := testbed.Contents(t, dir)
	for _, name := range []string{"espm.db", "ca/ca_crt.pem", "ca/ca_key.pem", "ca/ca_crl.pem"} {
		data := kept[filepath.Join(dir, name)]
		if err := w.Add(name, 0o640, int64(len(data)), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	done, err := Restore(t.Context(), c, &b, true)
	if err != nil || done.Audit.Flaw == nil || done.Audit.Flaw.Seq != 1 || done.Audit.Head.Hash != line.Hash || done.Store == "" {
		t.Errorf("got %+v, %v", done.Audit, err)
	}
}

// made is a backup of what trial made, without the CA's key.
func made(t *testing.T, dir string) []byte {
	t.Helper()
	kept := testbed.Contents(t, dir)
	var b bytes.Buffer
	w := backup.NewWriter(&b, backup.Manifest{Revision: 2, Records: map[string]int{"schema": 1, "enc": 1}})
	for _, name := range []string{"espm.db", "ca/ca_crt.pem", "ca/inventory.txt", "ca/ca_crl.pem"} {
		data := kept[filepath.Join(dir, name)]
		if err := w.Add(name, 0o640, int64(len(data)), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// gate is read when all of a backup but its manifest was.
type gate struct{ came, let chan struct{} }

func (g gate) Read([]byte) (int, error) {
	close(g.came)
	<-g.let
	return 0, io.EOF
}

// A restore that is refused leaves alone what another one has staged.
func TestSecondRestoreIsRefused(t *testing.T) {
	for what, c := range map[string]struct {
		stands bool
		says   string
	}{
		"over what stands":    {true, "in use"},
		"where nothing stood": {false, "another restore is running"},
	} {
		t.Run(what, func(t *testing.T) {
			dir, conf := trial(t)
			whole := made(t, dir)
			if !c.stands {
				if err := errors.Join(os.Remove(conf.Store.Path), os.RemoveAll(conf.Authority.Directory.Path)); err != nil {
					t.Fatal(err)
				}
			}
			g := gate{make(chan struct{}), make(chan struct{})}
			at := bytes.LastIndex(whole, []byte("MANIFEST.json"))
			first := make(chan error, 1)
			go func() {
				_, err := Restore(t.Context(), conf, io.MultiReader(bytes.NewReader(whole[:at]), g, bytes.NewReader(whole[at:])), true)
				first <- err
			}()
			<-g.came
			before := testbed.Contents(t, dir)
			if _, err := Restore(t.Context(), conf, bytes.NewReader(whole), true); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the second: %v", err)
			}
			if after := testbed.Contents(t, dir); len(after) != len(before) || !site.Exists(conf.Store.Path+staged) {
				t.Errorf("there were %d files, there are %d", len(before), len(after))
			}
			close(g.let)
			if err := <-first; err != nil {
				t.Errorf("the first: %v", err)
			}
		})
	}
}
