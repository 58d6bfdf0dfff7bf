package setup

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/test/need"
	"github.com/espm-project/espm/test/testbed"
)

// nobody is a user that owns nothing.
const nobody = 65534

// Root sets espm up in folders that a package has given to the daemon's user.
func TestInitHandsOver(t *testing.T) {
	need.Root(t, "become another user")
	dir := testbed.Dir(t)
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), InitOptions{Dir: dir, Certname: "puppet.test", CAKey: "ec-p256"}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{"espm.yaml": 0, "espm.db": nobody, "ca": nobody, "ca/ca_key.pem": nobody, "ca/signed": nobody} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != want || st.Gid != want {
			t.Errorf("%s belongs to %d:%d, want %d", name, st.Uid, st.Gid, want)
		}
	}
}

// What the doctor looks at in a CA's folder: the key is there, or a token has it.
func TestCAKeyIsThereOrInToken(t *testing.T) {
	dir := testbed.Dir(t)
	if _, err := Init(t.Context(), InitOptions{Dir: dir, Certname: "puppet.test", CAKey: "ec-p256"}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "ca", "ca_key.pem")
	inToken := config.Directory{Path: filepath.Join(dir, "ca"), Key: "pkcs11:token=a;object=b?module-path=/nowhere.so&pin-source=/nowhere"}
	healthy := func(what string) {
		t.Helper()
		if found, err := examineDirectory(&inToken); err != nil || len(found.Problems) > 0 || found.Subject != "CN=Puppet CA: puppet.test" {
			t.Errorf("%s the doctor finds %+v, %v", what, found, err)
		}
	}
	if err := os.WriteFile(file, []byte("what was left of another"), 0o600); err != nil {
		t.Fatal(err)
	}
	healthy("with the file")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	healthy("without it")
	if found, err := examineDirectory(&config.Directory{Path: inToken.Path}); err != nil || len(found.Problems) != 1 {
		t.Errorf("without a token: %+v, %v", found, err)
	}
}
