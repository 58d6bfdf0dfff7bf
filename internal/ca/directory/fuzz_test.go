package directory

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/pemfile"
)

// A CRL file that is taken is one that the next CRL can go on from: every entry has a
// place, and what is written of it reads the same. Seeds: testdata/fuzz, and Puppet Server's own files.
func FuzzParseCRLs(f *testing.F) {
	chains := map[string][]*pemfile.RawCertificate{}
	for _, ca := range []string{"puppetserver", "setup"} {
		dir := filepath.Join("testdata", ca)
		data, err := os.ReadFile(filepath.Join(dir, "ca_crl.pem"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		certs, err := os.ReadFile(filepath.Join(dir, "ca_crt.pem"))
		if err != nil {
			f.Fatal(err)
		}
		if chains[ca], _, err = parseCertificates(certs); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for ca, chain := range chains {
			c, err := parseCRLs(data, chain)
			if err != nil {
				continue
			}
			listed := 0
			for e := range c.entries.All() {
				if _, ok := e.Key(); ok {
					listed++
				}
			}
			if listed < c.listed.Len() || listed > c.count || c.repeated != (listed > c.listed.Len()) {
				t.Errorf("%s: %d entries, %d with a serial, listed %d", ca, c.count, listed, c.listed.Len())
			}
			written := c.withForeign(c.foreign)
			again, err := parseCRLs(written.pem, chain)
			if err != nil {
				t.Fatalf("%s: what is written of it can't be read: %v\n%s", ca, err, written.pem)
			}
			if again.number.Cmp(c.number) != 0 || !bytes.Equal(again.entries, c.entries) || len(again.foreign) != len(c.foreign) {
				t.Errorf("%s: number %d, %d foreign, then number %d, %d foreign", ca, c.number, len(c.foreign), again.number, len(again.foreign))
			}
		}
	})
}

// Whatever stands in the inventory: repaired, it keeps every whole line, and takes one
// more that is found. Both readers of a serial agree. Seeds: testdata/fuzz.
func FuzzInventory(f *testing.F) {
	next, err := parseEntry("0x7EDCBA9876543210 2026-11-21T16:13:33UTC 2031-11-21T16:13:33UTC /CN=next.example.com")
	if err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(f.TempDir(), "inventory.txt")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		v := &inventory{path: path, disk: noSync{durable.OS}}
		if _, err := v.repair(); err != nil {
			return // a last line of 64 KiB
		}
		if err := v.append(next); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		whole := data[:bytes.LastIndexByte(data, '\n')+1]
		if !bytes.HasPrefix(after, whole) || !bytes.HasSuffix(after, []byte(next.String()+"\n")) {
			t.Errorf("%q became %q", data, after)
		}
		if found, err := v.has(next.Serial, "next.example.com"); err != nil || !found {
			t.Errorf("the line that was added is not found: %v", err)
		}
		checkSerials(t, after)
	})
}

// checkSerials compares the reader of one line with the one of a million.
func checkSerials(t *testing.T, data []byte) {
	t.Helper()
	for line := range bytes.Lines(data) {
		field, _, _ := bytes.Cut(line, []byte(" "))
		slow, err := parseSerial(string(field))
		fast, ok := parseSerialKey(field)
		if (err == nil) != ok {
			t.Errorf("%q: one reader says %v, the other %v", field, err, ok)
		} else if key, _ := keyOfSerial(slow); ok && key != fast {
			t.Errorf("%q: %x and %x", field, key, fast)
		}
	}
}

// noSync is the disk without its fsyncs, which a fuzzer would wait for.
type noSync struct{ durable.Disk }

func (noSync) Append(path string, data []byte, _ os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(data)
	return err
}

func (noSync) Truncate(path string, size int64) error { return os.Truncate(path, size) }
