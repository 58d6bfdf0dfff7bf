package directory

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
)

func TestParseEntry(t *testing.T) {
	from, to := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC)
	const times = " 2026-01-02T03:04:05UTC 2031-01-02T03:04:05UTC "
	tests := map[string]entry{
		"0x0001" + times + "/CN=web.example.com":         {"0001", from, to, "/CN=web.example.com"},
		"0x001f" + times + "/CN=web.example.com":         {"001F", from, to, "/CN=web.example.com"}, // puppetserver ca setup
		"0x0001" + times + "/CN=Puppet CA: puppet":       {"0001", from, to, "/CN=Puppet CA: puppet"},
		"0xFFEEDDCCBBAA9988" + times + "/CN=web/OU=what": {"FFEEDDCCBBAA9988", from, to, "/CN=web/OU=what"},
	}
	for line, want := range tests {
		if got, err := parseEntry(line); got != want || err != nil {
			t.Errorf("%q: %+v, %v; want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{
		"", "0x", "0x0001", "0001" + times + "/CN=x", "0x" + times + "/CN=x", "0x-1" + times + "/CN=x", "0x0_1" + times + "/CN=x",
		"0x" + strings.Repeat("F", 41) + times + "/CN=x", "0x01" + times, "0x01" + times + "CN=x", "0x01 2026-01-02 2031-01-02 /CN=x",
	} {
		if e, err := parseEntry(line); err == nil {
			t.Errorf("%q: read as %+v", line, e)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add("0x0001 2026-11-21T16:13:33UTC 2031-11-21T16:13:33UTC /CN=Puppet CA: puppet")
	f.Add("0x001f 2026-11-21T16:13:57UTC 2041-11-18T16:13:58UTC /CN=puppet.lab.test")
	f.Add("0x01 2026-11-21T16:13:57UTC")
	f.Fuzz(func(t *testing.T, line string) {
		e, err := parseEntry(line)
		if err != nil {
			return
		}
		if _, ok := e.Serial.Int(); !ok {
			t.Errorf("serial %q is none", e.Serial)
		}
		if again, err := parseEntry(e.String()); err != nil || again != e {
			t.Errorf("%+v spelled as %q reads %+v, %v", e, e, again, err)
		}
	})
}

// slow is a Disk whose first append waits to be let go.
type slow struct {
	durable.Disk
	entered, release chan struct{}
	once             sync.Once
	appends          [][]byte
}

func (s *slow) Append(_ string, data []byte, _ fs.FileMode) error {
	s.once.Do(func() { close(s.entered); <-s.release })
	s.appends = append(s.appends, bytes.Clone(data))
	return nil
}

// TestInventoryGroups: what comes while an append is under way shares the next.
func TestInventoryGroups(t *testing.T) {
	disk := &slow{entered: make(chan struct{}), release: make(chan struct{})}
	v := &inventory{path: filepath.Join(t.TempDir(), "inventory.txt"), disk: disk}
	var wg sync.WaitGroup
	add := func() {
		if err := v.append(entry{Serial: "0001", Subject: "/CN=x"}); err != nil {
			t.Error(err)
		}
	}
	wg.Go(add)
	<-disk.entered
	for range 10 {
		wg.Go(add)
	}
	for waiting := 0; waiting < 10; { // the group has gathered them all
		v.mu.Lock()
		if v.next != nil {
			waiting = bytes.Count(v.next.lines.Bytes(), []byte("\n"))
		}
		v.mu.Unlock()
	}
	close(disk.release)
	wg.Wait()
	if len(disk.appends) != 2 || bytes.Count(disk.appends[1], []byte("\n")) != 10 {
		t.Errorf("%d appends, want one and then one of ten lines", len(disk.appends))
	}
}

func TestParseSerialKey(t *testing.T) {
	long := strings.Repeat("9f", 20)
	for field, want := range map[string]node.Serial{
		"0x00af": "00AF", "0xAF": "00AF", "0x1": "0001", "0x0AF1": "0AF1", "0x" + long: node.Serial(strings.ToUpper(long)),
		"00AF": "", "0x": "", "": "", "0x0g": "", "0x-1": "", "0x" + long + "0": "",
	} {
		got, ok := parseSerialKey([]byte(field))
		if key, _ := keyOfSerial(want); ok != (want != "") || ok && got != key {
			t.Errorf("%q: %x, %v; want that of %q", field, got, ok, want)
		}
	}
}

// TestHas: one look at the file serves many, and what is issued since is found.
func TestHas(t *testing.T) {
	v := &inventory{path: filepath.Join(t.TempDir(), "inventory.txt"), disk: durable.OS}
	add := func(s node.Serial) {
		if err := v.append(entry{Serial: s, Subject: "/CN=x"}); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(s node.Serial, want bool) {
		t.Helper()
		if got, err := v.has(s, "x"); got != want || err != nil {
			t.Errorf("%s: %v, %v; want %v", s, got, err, want)
		}
	}
	add("0001")
	expect("0001", true)
	expect("0002", false)
	add("0002")
	expect("0002", true)
	for range 2 { // from the file, and as it was added
		if got, err := v.has("0002", "y"); got || err != nil {
			t.Errorf("another's name: %v, %v", got, err)
		}
		v.forget()
	}
	if err := v.append(entry{Serial: "0001", Subject: "/CN=y"}); err != nil {
		t.Fatal(err)
	}
	if got, err := v.has("0001", "y"); !got || err != nil {
		t.Errorf("a serial that was issued twice: %v, %v", got, err)
	}
	expect("0001", true)
	if err := os.Remove(v.path); err != nil {
		t.Fatal(err)
	}
	expect("0001", true) // it is not read again
	v.forget()
	if _, err := v.has("0001", "x"); err == nil {
		t.Error("forgotten, but the file is not read again")
	}
}
