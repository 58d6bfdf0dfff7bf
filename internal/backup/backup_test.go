package backup

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

func make1(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b, Manifest{CreatedAt: time.Unix(1, 0).UTC(), Revision: 7})
	for _, name := range files {
		if err := w.Add(name, 0o640, int64(len(name)), strings.NewReader(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func readAll(data []byte) (Manifest, string, error) {
	var all strings.Builder
	m, err := Read(bytes.NewReader(data), func(f File, r io.Reader) error {
		_, err := io.Copy(&all, r)
		all.WriteString("|")
		return err
	})
	return m, all.String(), err
}

func TestWhole(t *testing.T) {
	m, text, err := readAll(make1(t, "espm.yaml", "espm.db", "ca/signed/a.pem"))
	if err != nil || text != "espm.yaml|espm.db|ca/signed/a.pem|" || m.Revision != 7 || len(m.Files) != 3 || m.Files[2].Mode != 0o640 {
		t.Errorf("%+v, %q, %v", m, text, err)
	}
}

// Wherever it is cut, and whichever byte of a file is turned, it is told.
func TestDamage(t *testing.T) {
	good := make1(t, "espm.yaml", "espm.db", "ca/ca_crl.pem")
	manifest := bytes.Index(good, []byte(manifestName))
	for cut := 0; cut < manifest; cut += 97 {
		if _, _, err := readAll(good[:cut]); err == nil {
			t.Errorf("cut at %d: whole", cut)
		}
	}
	for _, text := range []string{"espm.db", "ca/ca_crl.pem"} {
		// Its content, which follows the headers with its name.
		bad := bytes.Clone(good)
		bad[bytes.LastIndex(bad[:manifest], []byte(text))] ^= 1
		if _, _, err := readAll(bad); err == nil {
			t.Errorf("a turned bit in %s: whole", text)
		}
	}
	short := NewWriter(io.Discard, Manifest{})
	if err := short.Add("espm.db", 0o600, 9, strings.NewReader("short")); err == nil {
		t.Error("a file that shrank was taken")
	}
}

func TestNamesThatLeadElsewhere(t *testing.T) {
	for _, name := range []string{"/etc/passwd", "../x", "ca/../../x", "x", "ca//x", "ca/./x"} {
		if _, _, err := readAll(make1(t, name)); err == nil || !strings.Contains(err.Error(), "no place in a backup") {
			t.Errorf("%q: %v", name, err)
		}
	}
}
