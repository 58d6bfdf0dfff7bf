package bolt

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bbolt "go.etcd.io/bbolt"

	"github.com/espm-project/espm/internal/node"
)

func TestOpenLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "espm.db")
	e := openAt(t, path)
	_, err := Open(path, Options{Timeout: shortest})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Fatalf("second Open: got %v, want ErrLocked with the path", err)
	}
	if _, statErr := os.Stat("/proc/locks"); statErr == nil && !strings.Contains(err.Error(), fmt.Sprintf("pid %d (", os.Getpid())) {
		t.Errorf("second Open: %v; it does not name pid %d", err, os.Getpid())
	}
	if _, err := OpenReader(path, 0); !errors.Is(err, ErrLocked) {
		t.Errorf("OpenReader: got %v, want ErrLocked", err)
	}
	mustCommit(t, e, put("still", "works"))
}

func TestLockHolder(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 10 08:01:4711 0 EOF
2: FLOCK  ADVISORY  WRITE 11 08:02:4711 0 EOF
3: FLOCK  ADVISORY  WRITE 4242 08:01:4711 0 EOF
3: -> FLOCK  ADVISORY  WRITE 12 08:01:4711 0 EOF
4: FLOCK  ADVISORY  READ 0 08:01:99 0 EOF
5: FLOCK  ADVISORY  WRITE 13 fd:10:4711 0 EOF
garbage
`
	for _, tt := range []struct {
		major, minor uint32
		inode        uint64
		want         string
	}{
		{8, 1, 4711, "4242"},
		{0xfd, 0x10, 4711, "13"},
		{8, 1, 99, ""},
		{8, 1, 1, ""},
	} {
		if got := lockHolder(strings.NewReader(locks), tt.major, tt.minor, tt.inode); got != tt.want {
			t.Errorf("%d:%d:%d: got %q, want %q", tt.major, tt.minor, tt.inode, got, tt.want)
		}
	}
}

func TestReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "espm.db")
	if _, err := OpenReader(path, 0); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrLocked) {
		t.Fatalf("OpenReader: got %v, want fs.ErrNotExist", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("OpenReader created the file: %v", err)
	}
	e := openAt(t, path)
	at := mustCommit(t, e, put("k", "v"))
	e.Close()
	for range 2 {
		r, err := OpenReader(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		expect(t, r, "k", "v", at)
		expectAbsent(t, r, "none")
		records, revision, err := r.List(t.Context(), "", "", 5)
		if err != nil || len(records) != 1 || revision != at {
			t.Errorf("list: got %v at %d, %v", records, revision, err)
		}
	}
	r, err := OpenReader(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, err := r.Get(t.Context(), "k"); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("get after close: got %v, want ErrUnavailable", err)
	}
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "espm.db")
	for range 2 {
		e, err := Open(path, Options{Mode: 0o660})
		if err != nil {
			t.Fatal(err)
		}
		e.Close()
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o660 {
			t.Errorf("mode is %v, %v, want 0660", info.Mode(), err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("folder holds %v, %v, want the store alone", entries, err)
	}
}

func TestCreateNeverReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "espm.db")
	e := openAt(t, path)
	at := mustCommit(t, e, put("k", "v"))
	if err := createNew(path, 0o600); err != nil { // as by a process that saw no file yet
		t.Fatal(err)
	}
	e.Close()
	expect(t, openAt(t, path), "k", "v", at)
}

// TestOpenRefuses holds Open and OpenReader to leaving alone what is no store.
func TestOpenRefuses(t *testing.T) {
	good := filepath.Join(t.TempDir(), "espm.db")
	e := openAt(t, good)
	for i := range 100 {
		mustCommit(t, e, put(fmt.Sprintf("%0100d", i), strings.Repeat("v", 5000)))
	}
	e.Close()
	content, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	edited := func(fn func(*bbolt.Tx) error) []byte { return editFile(t, content, fn) }
	setMeta := func(key, value string) []byte {
		return edited(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put([]byte(key), []byte(value)) })
	}
	for _, tt := range []struct {
		name, want string
		content    []byte
	}{
		{"newer layout", "newer espm", setMeta("format", "2")},
		{"no layout", "unknown layout", setMeta("format", "")},
		{"odd layout", `unknown layout "zebra"`, setMeta("format", "zebra")},
		{"no revision", "damaged", setMeta("revision", "-1")},
		{"bucket missing", "damaged", edited(func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketHistory) })},
		{"other bbolt file", "no store of espm", edited(func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketMeta) })},
		{"text", "no bbolt file", bytes.Repeat([]byte("text\n"), 10_000)},
		{"short text", "no bbolt file", []byte("text\n")},
		{"empty", "is empty", nil},
		{"cut short", "", content[:3*os.Getpagesize()]},
		{"cut to the meta pages", "", content[:2*os.Getpagesize()]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "espm.db")
			if err := os.WriteFile(path, tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(path, Options{Timeout: shortest})
			_, readErr := OpenReader(path, 0)
			for _, err := range []error{err, readErr} {
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) || errors.Is(err, ErrLocked) {
					t.Errorf("got %v, want %q and the path", err, tt.want)
				}
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, tt.content) {
				t.Errorf("file was changed: %d bytes, before %d, %v", len(got), len(tt.content), err)
			}
		})
	}
}

// editFile returns what a bbolt file holds after a change.
func editFile(t *testing.T, content []byte, change func(*bbolt.Tx) error) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "edited")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(change), db.Close()); err != nil {
		t.Fatal(err)
	}
	edited, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return edited
}

func TestOpenElsewhere(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none", "espm.db"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing folder: got %v, want fs.ErrNotExist", err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("folder: got %v, want an error with the path", err)
	}
	if _, err := OpenReader(dir, 0); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("folder: got %v, want an error with the path", err)
	}
}

func TestDamagedPage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "espm.db")
	e := openAt(t, path)
	for i := range 100 {
		mustCommit(t, e, put(fmt.Sprintf("k%03d", i), strings.Repeat("v", 2000)))
	}
	e.Close()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const leaf = 2 // the flag in a page's header, 8 bytes in
	size := os.Getpagesize()
	for page := range slices.Chunk(content, size) {
		if page[8] == leaf && bytes.Contains(page, []byte("k050")) {
			clear(page[:16])
		}
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	e = openAt(t, path)
	if _, err := e.Get(t.Context(), "k050"); !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v, want ErrUnavailable that says damaged", err)
	}
	if _, err := e.Get(t.Context(), "k000"); err != nil {
		t.Errorf("whole page: %v", err)
	}
}
