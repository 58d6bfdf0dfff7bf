package pkcs11_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/ca/pkcs11"
)

const tail = "?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/espm/pin"

func TestParseURI(t *testing.T) {
	const module, pin = "/usr/lib/softhsm/libsofthsm2.so", "/etc/espm/pin"
	for s, want := range map[string]pkcs11.URI{
		"pkcs11:token=espm;object=ca" + tail:                                      {Token: "espm", Object: "ca", Module: module, PINSource: pin},
		"pkcs11:id=%01%FF;token=espm" + tail:                                      {Token: "espm", ID: []byte{1, 0xff}, Module: module, PINSource: pin},
		"pkcs11:token=My%20token;object=K%C3%B6ln+1;id=%01;type=private" + tail:   {Token: "My token", Object: "Köln+1", ID: []byte{1}, Module: module, PINSource: pin},
		"pkcs11:token=a;object=b?pin-source=file:/etc/espm/pin&module-path=/m.so": {Token: "a", Object: "b", Module: "/m.so", PINSource: pin},
	} {
		got, err := pkcs11.ParseURI(s)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v", s, got, err)
		}
		if again, err := pkcs11.ParseURI(got.String()); err != nil || !reflect.DeepEqual(again, want) {
			t.Errorf("%s, spelled %s: got %+v, %v", s, got, again, err)
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	for s, want := range map[string]string{
		"":                               "must be a PKCS #11 URI",
		"/etc/espm/ca_key.pem":           "must be a PKCS #11 URI",
		"PKCS11:token=a;object=b" + tail: "must be a PKCS #11 URI",
		"pkcs11:token=" + strings.Repeat("a", 5000) + tail:         "at most 4096 bytes",
		"pkcs11:token=a;id=" + strings.Repeat("\xff", 2000) + tail: "at most 4096 bytes, percent-encoded",
		"pkcs11:object=b" + tail:                                   "token: must be set",
		"pkcs11:token=a" + tail:                                    "object: must be set, or id",
		"pkcs11:token=;object=b" + tail:                            "token: must not be empty",
		"pkcs11:token=a;object=b;object=c" + tail:                  "object: stands there twice",
		"pkcs11:token=a;object=%zz" + tail:                         "object: must not be empty, and percent-encoded well",
		"pkcs11:token=a;object=%00" + tail:                         "object: must be text",
		"pkcs11:token=a;object=b;serial=1" + tail:                  `"serial": is none of the attributes`,
		"pkcs11:token=a;object=b;type=cert" + tail:                 "type: must be private",
		"pkcs11:token=a;object=b;" + tail:                          `"": is none of the attributes`,
		"pkcs11:token=a;object=b?pin-source=/p":                    "module-path: must be set",
		"pkcs11:token=a;object=b?module-path=/m":                   "pin-source: must be set",
		"pkcs11:token=a;object=b?module-path=m":                    "module-path: must be set",
		"pkcs11:token=a;object=b" + tail + "&pin-value=1":          "pin-value: is refused",
		"pkcs11:token=a;object=b;pin-value=1" + tail:               "pin-value: is refused",
		"pkcs11:token=a;object=b" + tail + "&module-name=x":        `"module-name": is none of`,
	} {
		if u, err := pkcs11.ParseURI(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: got %+v, %v; want %q", s, u, err, want)
		}
	}
}

// Seeds: testdata/fuzz.
func FuzzParseURI(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		u, err := pkcs11.ParseURI(s)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the reason %q is no line", err)
			}
			return
		}
		if again, err := pkcs11.ParseURI(u.String()); err != nil || !reflect.DeepEqual(again, u) {
			t.Errorf("%.300q, spelled %.300q, became %.300q, %v", s, u, again, err)
		}
	})
}
