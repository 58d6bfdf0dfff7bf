package directory_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/test/need"
)

// openssl runs it, or skips the test where there is none.
func openssl(t *testing.T, args ...string) string {
	t.Helper()
	need.Program(t, "openssl")
	out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput()
	if err != nil {
		t.Errorf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestOpenSSLAgrees has every flavour's certificates and CRLs verified by OpenSSL, as agents do.
func TestOpenSSLAgrees(t *testing.T) {
	for name, make := range flavours {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := make(t)
			a := open(t, dir, directory.Options{})
			sign(t, a, "good.example.com")
			bad := sign(t, a, "bad.example.com")
			badPath := filepath.Join(t.TempDir(), "bad.pem")
			write(t, badPath, read(t, dir, "signed", "bad.example.com.pem"))
			revoke(t, a, target(bad))
			verify := []string{
				"verify", "-x509_strict", "-crl_check_all", "-attime", fmt.Sprint(now().Unix()),
				"-CAfile", filepath.Join(dir, "ca_crt.pem"), "-CRLfile", filepath.Join(dir, "ca_crl.pem"),
			}
			openssl(t, append(verify, filepath.Join(dir, "signed", "good.example.com.pem"))...)
			out, err := exec.CommandContext(t.Context(), "openssl", append(verify, badPath)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "certificate revoked") {
				t.Errorf("verify of a revoked certificate: %v\n%s", err, out)
			}
			text := openssl(t, "crl", "-noout", "-text", "-in", filepath.Join(dir, "ca_crl.pem"))
			if want := fmt.Sprintf("Serial Number: %X", bad.SerialNumber.Bytes()); !strings.Contains(text, want) {
				t.Errorf("openssl crl shows\n%swant %q", text, want)
			}
		})
	}
}
