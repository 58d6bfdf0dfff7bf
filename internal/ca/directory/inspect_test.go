package directory_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
)

// TestNewestCRL: the highest number counts, and only that CA's; what Open and Inspect take of ca_crt.pem is taken here too.
func TestNewestCRL(t *testing.T) {
	newer := func(t *testing.T, dir string) (own, copied string) {
		t.Helper()
		copied = filepath.Join(t.TempDir(), "crl.pem")
		own = read(t, dir, "ca_crl.pem")
		revoke(t, open(t, dir, directory.Options{Publish: []string{copied}}), ca.Target{Serial: "0007"})
		return own, copied
	}
	for what, change := range map[string]func(t *testing.T, dir string){
		"as it is":                   func(*testing.T, string) {},
		"without a key":              remove("ca_key.pem"),
		"another root after its own": func(t *testing.T, dir string) { appendCA(t, dir) },
	} {
		t.Run(what, func(t *testing.T) {
			dir := create(t, directory.CreateOptions{Key: ca.ECP256, Intermediate: true})
			own, copied := newer(t, dir)
			latest := read(t, dir, "ca_crl.pem")
			write(t, filepath.Join(dir, "ca_crl.pem"), own)
			foreign := filepath.Join(create(t, directory.CreateOptions{Key: ca.ECP256}), "ca_crl.pem")
			change(t, dir)
			if _, err := directory.Inspect(dir, false); err != nil {
				t.Error(err)
			}
			data, err := directory.NewestCRL(dir, filepath.Join(dir, "absent.pem"), foreign, copied)
			if err != nil || string(data) != latest {
				t.Errorf("%v; it is the copy: %v", err, string(data) == latest)
			}
			if data, err := directory.NewestCRL(dir, filepath.Join(dir, "ca_crl.pem"), foreign); err != nil || data != nil {
				t.Errorf("its own is the newest: %d bytes, %v", len(data), err)
			}
		})
	}
}

func appendCA(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "ca_crt.pem")
	write(t, path, read(t, path)+read(t, create(t, directory.CreateOptions{Key: ca.ECP256, Name: "another root"}), "ca_crt.pem"))
}

// TestInspectNamesTheFile that is wrong.
func TestInspectNamesTheFile(t *testing.T) {
	for name, change := range map[string]func(*testing.T, string){
		"ca_crt.pem": put("ca_crt.pem", "nothing"),
		"ca_crl.pem": put("ca_crl.pem", "nothing"),
	} {
		dir := create(t, directory.CreateOptions{Key: ca.ECP256})
		change(t, dir)
		_, inspected := directory.Inspect(dir, false)
		_, newest := directory.NewestCRL(dir)
		for what, err := range map[string]error{"Inspect": inspected, "NewestCRL": newest} {
			if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, name)) {
				t.Errorf("%s: %v, want it to name %s", what, err, name)
			}
		}
	}
}
