package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/test/testbed"
)

func TestListen(t *testing.T) {
	path := filepath.Join(testbed.Dir(t), "s")
	l, err := listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("got %v, %v, want mode 0660", info.Mode(), err)
	}
	if _, err := listen(path, ""); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second one: %v", err)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Error("the first one was disturbed: ", err)
	} else {
		conn.Close()
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as a killed process leaves it
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = listen(path, "")
	if err != nil {
		t.Fatal("over a dead socket: ", err)
	}
	l.Close()
}

func TestListenRefuses(t *testing.T) {
	dir := testbed.Dir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, group, says string }{
		{file, "", "stands in the way: it is no socket"},
		{dir, "", "stands in the way: it is no socket"},
		{filepath.Join(dir, "s"), "no-such-group", "group no-such-group: group: unknown group no-such-group"},
	} {
		l, err := listen(c.path, c.group)
		if err == nil {
			l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %q", c.path, err, c.says)
		}
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "precious" {
		t.Errorf("the file is %q, %v", data, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "s")); err == nil {
		t.Error("a socket that was refused its group stays")
	}
}
