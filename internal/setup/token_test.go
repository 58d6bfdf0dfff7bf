//go:build pkcs11

package setup

import (
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/ca/pkcs11/softhsm"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/doctor"
)

// The doctor opens the token by itself and says whether its key is the CA's.
func TestCAKeyIsExamined(t *testing.T) {
	token := softhsm.New(t)
	made, err := Init(t.Context(), InitOptions{Dir: t.TempDir(), Certname: "puppet.test", CAKey: "ec-p256", CAKeyURI: token.URI("Puppet CA").String()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(made.Config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), InitOptions{Dir: t.TempDir(), Certname: "other.test", CAKey: "ec-p256", CAKeyURI: token.URI("other").String()}); err != nil {
		t.Fatal(err)
	}
	for _, f := range Examine(t.Context(), c.File) {
		if (f.Check == "authority" || f.Check == "ca key") && f.Severity != doctor.OK {
			t.Errorf("%+v", f)
		}
	}
	token.Away(t)
	if err := examineToken(c.Authority.Directory); err == nil || !strings.Contains(err.Error(), "could not find PKCS#11 token") {
		t.Errorf("without the token: %v", err)
	}
	token.Back(t)
	c.Authority.Directory.Key = token.URI("other").String()
	if err := examineToken(c.Authority.Directory); err == nil || !strings.Contains(err.Error(), `the token's key does not belong to "CN=Puppet CA: puppet.test"`) {
		t.Errorf("with another's key: %v", err)
	}
}
