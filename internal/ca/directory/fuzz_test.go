package directory

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

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

// Whatever stands in the inventory: every byte of it stays, and a line that is added is found. Seeds: testdata/fuzz.
func FuzzInventory(f *testing.F) {
	next := entry{Serial: "7EDCBA9876543210", NotBefore: time.Unix(1795276413, 0), NotAfter: time.Unix(1953042813, 0), Subject: "/CN=next.example.com"}
	path := filepath.Join(f.TempDir(), "inventory.txt")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		v := &inventory{path: path, disk: noSync{durable.OS}}
		if _, err := v.endLine(); err != nil {
			t.Fatal(err)
		}
		if err := v.append(next); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(data)
		if len(want) > 0 && want[len(want)-1] != '\n' {
			want = append(want, '\n')
		}
		if want = append(want, next.String()+"\n"...); !bytes.Equal(after, want) {
			t.Errorf("%q became %q", data, after)
		}
		if found, err := v.has(next.Serial, "next.example.com"); err != nil || !found {
			t.Errorf("the line that was added is not found: %v", err)
		}
		key, _ := keyOfSerial(next.Serial)
		ended := end(0)
		if err := v.ends(t.Context(), func(k serialKey) bool { return k == key }, func(_ serialKey, e end) { ended = e }); err != nil || ended != endOf(next.NotAfter) {
			t.Errorf("the line that was added ends at %d: %v", ended, err)
		}
		if _, err := v.readSeveral(next.NotBefore); err != nil {
			t.Error(err)
		}
	})
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
