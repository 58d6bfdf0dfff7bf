package directory

import (
	"bytes"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
)

// TestForms: a line is read in whatever form some version of Puppet or a person wrote it.
func TestForms(t *testing.T) {
	from, to := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC)
	const times = " 2026-01-02T03:04:05UTC 2031-01-02T03:04:05UTC "
	tests := map[string]entry{
		"0x0001" + times + "/CN=web.example.com":                               {"0001", from, to, "/CN=web.example.com"},
		"0x001f" + times + "/CN=web.example.com":                               {"001F", from, to, "/CN=web.example.com"}, // puppetserver ca setup
		"0x0001" + times + "/CN=Puppet CA: puppet":                             {"0001", from, to, "/CN=Puppet CA: puppet"},
		"0xFFEEDDCCBBAA9988" + times + "/CN=web/OU=what":                       {"FFEEDDCCBBAA9988", from, to, "/CN=web/OU=what"},
		"0x0001 2026-01-02T03:04:05GMT 2031-01-02T03:04:05GMT /CN=web":         {"0001", from, to, "/CN=web"}, // Puppet 2.7 and 3
		"0x0001 2026-01-02T05:04:05+0200 2031-01-01T22:04:05-0500 /CN=web":     {"0001", from, to, "/CN=web"},
		"0x0001 2026-01-02T05:04:05+02:00 2031-01-02T03:04:05Z /CN=web":        {"0001", from, to, "/CN=web"},
		"0x0001 2026-01-01T15:04:05CEST 2031-01-01T15:04:05PST /CN=web":        {"0001", from, to, "/CN=web"}, // the latest that it may be
		" 0x0001\t2026-01-02T03:04:05UTC   2031-01-02T03:04:05UTC  /CN=web \r": {"0001", from, to, "/CN=web"},
		"0x0001" + times + "/CN=web\r":                                         {"0001", from, to, "/CN=web"},
	}
	for line, want := range tests {
		for _, end := range []string{"", "\n"} {
			v := &inventory{path: filepath.Join(t.TempDir(), "inventory.txt")}
			if err := os.WriteFile(v.path, []byte("# Inventory of signed certificates\n# SERIAL NOT_BEFORE NOT_AFTER SUBJECT\n\n"+line+end), 0o644); err != nil {
				t.Fatal(err)
			}
			var got []entry
			if err := v.scan(func(key serialKey, rest []byte) error {
				notBefore, notAfter, subject, ok := cutLine(rest)
				if ok {
					got = append(got, entry{node.SerialOf(new(big.Int).SetBytes(key[:])), notBefore, notAfter, string(subject)})
				}
				return nil
			}); err != nil || len(got) != 1 || got[0] != want {
				t.Errorf("%q: %+v, %v; want %+v", line+end, got, err, want)
			}
		}
	}
}

func FuzzInventoryTime(f *testing.F) {
	for _, seed := range []string{"2026-11-21T16:13:33UTC", "2026-11-21T16:13:33GMT", "2026-11-21T16:13:33+0100", "2026-11-21T16:13:33CEST", "2026-11-21"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := parseInventoryTime(text)
		if !ok {
			return
		}
		if again, ok := parseInventoryTime(got.Format(inventoryTime)); got.Nanosecond() == 0 && got.Year() < 10000 && (!ok || !again.Equal(got)) {
			t.Errorf("%q is %v, and that spelled anew %v, %v", text, got, again, ok)
		}
	})
}

// TestNothingIsCut: a last line without an end gets one, and nothing else changes, whoever wrote it and whatever it is.
func TestNothingIsCut(t *testing.T) {
	for _, last := range []string{
		"0x0003 2026-01-02T03:04:05GMT 2031-01-02T03:04:05GMT /CN=old.example.com",
		"0x0003 2026-01-02T03:04:05+0200 2031-01-02T03:04:05+0200 /CN=old.example.com",
		"# by hand: 0x0003 was lost",
		"0x1234567890ABCDEF 2026-01-02T03:0",
		strings.Repeat("x", 100<<10),
	} {
		for _, suspect := range []bool{false, true} { // at the start, and after an append that failed
			v := &inventory{path: filepath.Join(t.TempDir(), "inventory.txt"), disk: durable.OS, suspect: suspect}
			if err := os.WriteFile(v.path, []byte("# header\n"+last), 0o644); err != nil {
				t.Fatal(err)
			}
			if !suspect {
				if added, err := v.endLine(); !added || err != nil {
					t.Errorf("%.80q: %v, %v", last, added, err)
				}
			}
			next := entry{Serial: "0004", Subject: "/CN=new.example.com"}
			if err := v.append(next); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(v.path); err != nil || string(got) != "# header\n"+last+"\n"+next.String()+"\n" {
				t.Errorf("%.80q became %.200q, %v", last, got, err)
			}
		}
	}
}

// TestMissingInventory: the error says how to mend it, at the start and later.
func TestMissingInventory(t *testing.T) {
	v := &inventory{path: filepath.Join(t.TempDir(), "inventory.txt"), disk: durable.OS}
	_, atStart := v.endLine()
	_, later := v.has("0001", "x")
	for _, err := range []error{atStart, later} {
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "from a backup") || !strings.Contains(err.Error(), "/dev/null "+v.path) {
			t.Errorf("says %v", err)
		}
	}
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
