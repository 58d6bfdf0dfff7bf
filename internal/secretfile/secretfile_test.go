package secretfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// file is one as the kernel reports it.
type file struct {
	mode fs.FileMode
	gid  uint32
}

func (f file) Name() string       { return "key.pem" }
func (f file) Size() int64        { return 1 }
func (f file) Mode() fs.FileMode  { return f.mode }
func (f file) ModTime() time.Time { return time.Time{} }
func (f file) IsDir() bool        { return false }
func (f file) Sys() any           { return &syscall.Stat_t{Gid: f.gid} }

func TestModes(t *testing.T) {
	const root, users, puppet, pe = 0, 100, 52, 53
	names := map[uint32]string{root: "root", users: "users", puppet: "puppet", pe: "pe-puppet"}
	for _, c := range []struct {
		mode fs.FileMode
		gid  uint32
		want string // "": taken
	}{
		{0o600, users, ""},
		{0o400, users, ""},
		{0o640, puppet, ""},
		{0o640, pe, ""},
		{0o440, puppet, ""},
		{0o640, root, ""},
		{0o640, users, "open to its group (mode 0640); mend it: chmod 0600 /ca/key.pem"},
		{0o640, 4711, "open to its group (mode 0640); mend it: chmod 0600 /ca/key.pem"}, // a group without a name
		{0o660, puppet, "open to its group (mode 0660); mend it: chmod 0640 /ca/key.pem"},
		{0o650, puppet, "open to its group (mode 0650); mend it: chmod 0640 /ca/key.pem"},
		{0o644, puppet, "open to everybody (mode 0644); mend it: chmod 0640 /ca/key.pem"},
		{0o644, users, "open to everybody (mode 0644); mend it: chmod 0600 /ca/key.pem"},
		{0o602, users, "open to everybody (mode 0602); mend it: chmod 0600 /ca/key.pem"},
		{0o601, root, "open to everybody (mode 0601); mend it: chmod 0600 /ca/key.pem"},
	} {
		err := check("CA key", "/ca/key.pem", file{c.mode, c.gid}, func(gid uint32) string { return names[gid] })
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%04o of %d: %v", c.mode, c.gid, err)
		case c.want != "" && (err == nil || err.Error() != "CA key /ca/key.pem is "+c.want):
			t.Errorf("%04o of %d: got %v, want %q", c.mode, c.gid, err, c.want)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, data, 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if data, err := Read("PIN", write("pin", []byte("1234\n"), 0o600)); err != nil || string(data) != "1234\n" {
		t.Errorf("got %q, %v", data, err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(write("it's open", nil, 0o604), link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "it's open"): `chmod 0600 '` + dir + `/it'\''s open'`,
		link:                            "PIN " + link + " is open to everybody (mode 0604)", // the file's, not the link's
		filepath.Join(dir, "none"):      "no such file",
		dir:                             "is no regular file",
		write("big", bytes.Repeat([]byte{1}, MaxSize+1), 0o600): "has more than 65536 bytes",
	} {
		if data, err := Read("PIN", path); err == nil || data != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %q, %v; want %q", path, data, err, want)
		}
	}
}

func TestCheckMode(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := CheckMode("the store's folder", dir, 0o002); err == nil || !strings.HasSuffix(err.Error(), "is open to everybody (mode 0777); mend it: chmod 0775 "+dir) {
		t.Errorf("got %v", err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), CheckMode("folder", dir, 0o002), CheckMode("file", dir+"/none", 0o007)); err != nil {
		t.Error(err)
	}
}
