package directory_test

import (
	"math/big"
	"path/filepath"
	"testing"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/pemfile"
)

// TestPublished: what espm says that it published is what the files have, and it lists what was revoked.
func TestPublished(t *testing.T) {
	for name, make := range flavours {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, copied := make(t), filepath.Join(t.TempDir(), "crl.pem")
			a := open(t, dir, directory.Options{Publish: []string{copied}})
			revoke(t, a, ca.Target{Serial: "0A0B"})
			p := a.Published()
			for _, path := range []string{copied, filepath.Join(dir, "ca_crl.pem")} {
				if !pemfile.HasContent(path, p.PEM) {
					t.Errorf("%s has another content", path)
				}
			}
			crls := readCRLs(t, copied)
			if crls[0].Number.String() != p.Number || !crls[0].NextUpdate.Equal(p.NextUpdate) || crls[0].CheckSignatureFrom(p.Issuer) != nil {
				t.Errorf("%+v", p)
			}
			if len(pemRest(t, copied)) != len(p.Rest) {
				t.Errorf("the other issuers' CRLs are %d bytes", len(p.Rest))
			}
			if !p.Lists(big.NewInt(0x0A0B)) || p.Lists(big.NewInt(0x0A0C)) || p.Lists(big.NewInt(-1)) {
				t.Error("lists")
			}
		})
	}
}

// pemRest is what follows the first block of a file.
func pemRest(t *testing.T, path string) string {
	t.Helper()
	text := read(t, path)
	for _, first := range pemfile.Texts([]byte(text)) {
		return text[len(first):]
	}
	return ""
}
