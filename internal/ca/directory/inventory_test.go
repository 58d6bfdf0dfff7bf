package directory

import (
	"bytes"
	"io/fs"
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

func TestSameSerial(t *testing.T) {
	for field, want := range map[string]bool{"0x00af": true, "0xAF": true, "0x00AF": true, "00AF": false, "0x0AF1": false, "0x": false} {
		if got := sameSerial([]byte(field), node.Serial("00AF")); got != want {
			t.Errorf("%s: %v, want %v", field, got, want)
		}
	}
}
