package secrets

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"testing"
)

// window is how many consecutive bytes of a secret, in any encoding, are a
// leak. Even a shortened error message has as many.
const window = 16

// search finds parts of secrets, in any encoding, at any offset.
type search struct {
	windows map[[window]byte]string // what it is
	begins  []bool                  // by hash of how a window begins: most of a file needs no look into the map
}

func newSearch() *search { return &search{map[[window]byte]string{}, make([]bool, 1<<24)} }

func begin(text []byte) uint32 { return binary.LittleEndian.Uint32(text) * 0x9e3779b1 >> 8 }

// spelled adds all windows of one encoding.
func (s *search) spelled(what string, text []byte) {
	for i := 0; i+window <= len(text); i++ {
		s.windows[[window]byte(text[i:])] = what
		s.begins[begin(text[i:])] = true
	}
}

// add adds a secret to the search.
func (s *search) add(what string, secret []byte) {
	s.spelled(what, secret)
	s.spelled(what+" in hex", []byte(hex.EncodeToString(secret)))
	s.spelled(what+" in upper-case hex", []byte(strings.ToUpper(hex.EncodeToString(secret))))
	s.spelled(what+" in hex with colons", []byte(strings.ReplaceAll(fmt.Sprintf("% x", secret), " ", ":")))
	s.spelled(what+" in hex with spaces", fmt.Appendf(nil, "% x", secret))
	s.spelled(what+" as Go source", fmt.Appendf(nil, "%#v", secret))
	s.spelled(what+" in decimal bytes", fmt.Append(nil, secret))
	s.spelled(what+" quoted", []byte(strconv.Quote(string(secret))))
	for offset := range 3 {
		if rest := secret[min(offset, len(secret)):]; len(rest) > 3 {
			rest = rest[:len(rest)/3*3] // what follows in the file decides over the rest
			s.spelled(what+" in base64", []byte(base64.StdEncoding.EncodeToString(rest)))
			s.spelled(what+" in base64 for URLs", []byte(base64.URLEncoding.EncodeToString(rest)))
		}
	}
}

// addKey adds the private parts of a key, which is in the bundle's PEM form.
func (s *search) addKey(t *testing.T, what string, text []byte) {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s: no PEM", what)
	}
	body := bytes.IndexByte(text, '\n') + 1
	for name, number := range numbers(t, block) {
		raw := number.Bytes()
		s.add(what+": "+name, raw)
		s.spelled(what+": "+name+" in decimal", []byte(number.String()))
		// As text, PEM may be encoded once more, such as by JSON.
		at := bytes.Index(block.Bytes, raw)
		if at < 0 {
			t.Fatalf("%s: %s is not in its DER", what, name)
		}
		position := func(octet int) int { char := octet * 4 / 3; return body + char + char/64 }
		s.add(what+": "+name+" in PEM", text[position(at)+1:position(at+len(raw))-1])
	}
}

// numbers returns the private numbers of a key.
func numbers(t *testing.T, block *pem.Block) map[string]*big.Int {
	t.Helper()
	if block.Type == "EC PRIVATE KEY" {
		key, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return map[string]*big.Int{"scalar": new(big.Int).SetBytes(raw)}
	}
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*big.Int{
		"d": key.D, "p": key.Primes[0], "q": key.Primes[1],
		"dp": key.Precomputed.Dp, "dq": key.Precomputed.Dq, "qinv": key.Precomputed.Qinv,
	}
}

// find returns the name of a secret in the data, or "".
func (s *search) find(data []byte) string {
	for i := 0; i+window <= len(data); i++ {
		if !s.begins[begin(data[i:])] {
			continue
		}
		if what, found := s.windows[[window]byte(data[i:])]; found {
			return fmt.Sprintf("%s, at byte %d", what, i)
		}
	}
	return ""
}

func ecKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

func rsaKey(t *testing.T) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
}

// The search must find a key in every encoding. Otherwise an empty result would prove nothing.
func TestSearch(t *testing.T) {
	for name, text := range map[string][]byte{"EC": ecKey(t), "RSA": rsaKey(t)} {
		s := newSearch()
		s.addKey(t, "key", text)
		block, _ := pem.Decode(text)
		shifted := func(n int, b []byte) []byte { return append(bytes.Repeat([]byte{'x'}, n), b...) }
		encoded, err := json.Marshal(map[string]any{"key": text})
		if err != nil {
			t.Fatal(err)
		}
		quoted, err := json.Marshal(string(text))
		if err != nil {
			t.Fatal(err)
		}
		for how, leak := range map[string][]byte{
			"PEM": text, "DER": block.Bytes, "quoted": fmt.Appendf(nil, "%q", text), "quoted DER": fmt.Appendf(nil, "%q", block.Bytes),
			"hex": []byte(hex.EncodeToString(block.Bytes)), "HEX": fmt.Appendf(nil, "%X", block.Bytes), "spaced hex": fmt.Appendf(nil, "% x", block.Bytes),
			"bytes": fmt.Appendf(nil, "%v", block.Bytes), "bytes of PEM": fmt.Appendf(nil, "%v", text), "Go": fmt.Appendf(nil, "%#v", block.Bytes),
			"JSON of bytes": encoded, "JSON of a string": quoted, "hex of PEM": []byte(hex.EncodeToString(text)),
			"base64 after 1": []byte(base64.StdEncoding.EncodeToString(shifted(1, block.Bytes))),
			"base64 after 2": []byte(base64.RawURLEncoding.EncodeToString(shifted(2, block.Bytes))),
			"PEM after 1":    []byte(base64.StdEncoding.EncodeToString(shifted(1, text))),
			"PEM after 2":    []byte(base64.StdEncoding.EncodeToString(shifted(2, text))),
		} {
			if s.find(append(bytes.Repeat([]byte("level=info msg=x\x00"), 3), leak...)) == "" {
				t.Errorf("%s: %s is not found", name, how)
			}
		}
		if name == "EC" && s.find(text[:80]) == "" { // RSA's begins with what is public
			t.Error("the start of PEM, cut, is not found")
		}
		key, other := numbers(t, block), newSearch()
		for which, number := range key {
			if s.find([]byte("d:"+number.String())) == "" {
				t.Errorf("%s: %s in decimal is not found", name, which)
			}
		}
		other.addKey(t, "another", ecKey(t))
		if found := other.find(text); found != "" {
			t.Errorf("%s: found %s in another key", name, found)
		}
	}
}
