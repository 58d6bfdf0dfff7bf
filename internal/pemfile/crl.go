package pemfile

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// RevocationList is a CRL (RFC 5280 section 5). The list stays DER, so an entry needs no memory beyond its
// bytes. Unlike package x509, RevocationList supports version 1, negative serials and any signature
// algorithm, as Puppet Server and OpenSSL do.
type RevocationList struct {
	Raw        []byte
	RawIssuer  []byte    // the name, in DER
	Version    int       // 1 or 2; the encoded value is one less
	ThisUpdate time.Time // zero: malformed
	NextUpdate time.Time // zero: missing or malformed
	Number     *big.Int  // nil: missing
	// AuthorityKeyID is the identifier of the issuer's key; nil: missing.
	AuthorityKeyID []byte
	Entries        Entries
	EmptyEntries   bool // the list is present but empty, which RFC 5280 section 5.1.2.6 forbids

	tbs       []byte
	algorithm []byte // AlgorithmIdentifier inside the signed part
	outer     []byte // AlgorithmIdentifier outside the signed part
	signature []byte
	critical  asn1.ObjectIdentifier // the first critical extension
	malformed error                 // the error of an extension; CheckWhole returns it
}

var (
	oidCRLNumber      = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
)

// ParseCRL parses one block of a CRL file. ParseCRL checks neither the signature (CheckSignatureFrom) nor
// whether the CRL is complete (CheckWhole).
func ParseCRL(block *pem.Block) (*RevocationList, error) {
	if block.Type != CRL {
		return nil, WrongType(block, CRL)
	}
	list, err := parseCRL(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse CRL: %w", err)
	}
	return list, nil
}

func parseCRL(der []byte) (*RevocationList, error) {
	var l RevocationList
	var whole, tbs, outer cryptobyte.String
	input := cryptobyte.String(der)
	var signature asn1.BitString
	if !input.ReadASN1Element(&whole, cbasn1.SEQUENCE) {
		return nil, errors.New("malformed: it is no SEQUENCE in DER")
	}
	l.Raw = whole
	if !whole.ReadASN1(&whole, cbasn1.SEQUENCE) || !whole.ReadASN1Element(&tbs, cbasn1.SEQUENCE) ||
		!whole.ReadASN1Element(&outer, cbasn1.SEQUENCE) || !whole.ReadASN1BitString(&signature) {
		return nil, errors.New("malformed")
	}
	l.tbs, l.outer, l.signature = tbs, outer, signature.RightAlign()
	if !tbs.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return nil, errors.New("malformed")
	}
	return &l, l.parseTBS(tbs)
}

// parseTBS parses the signed part.
func (l *RevocationList) parseTBS(tbs cryptobyte.String) error {
	version := 0 // the default if the field is missing: version 1
	if tbs.PeekASN1Tag(cbasn1.INTEGER) && !tbs.ReadASN1Integer(&version) {
		return errors.New("malformed version")
	}
	l.Version = version + 1
	var algorithm, issuer cryptobyte.String
	if !tbs.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&issuer, cbasn1.SEQUENCE) {
		return errors.New("malformed signature algorithm or issuer")
	}
	l.algorithm, l.RawIssuer = algorithm, issuer
	if !isTime(tbs) {
		return errors.New("it has no thisUpdate")
	}
	l.ThisUpdate = skipTime(&tbs)
	if isTime(tbs) {
		l.NextUpdate = skipTime(&tbs)
	}
	if tbs.PeekASN1Tag(cbasn1.SEQUENCE) {
		var entries cryptobyte.String
		if !tbs.ReadASN1(&entries, cbasn1.SEQUENCE) {
			return errors.New("malformed list of entries")
		}
		l.Entries, l.EmptyEntries = Entries(entries), entries.Empty()
		if err := l.Entries.check(); err != nil {
			return err
		}
	}
	l.malformed = l.parseExtensions(tbs)
	return nil
}

// parseExtensions parses the fields after the entries.
func (l *RevocationList) parseExtensions(tbs cryptobyte.String) error {
	var list cryptobyte.String
	var present bool
	if !tbs.ReadOptionalASN1(&list, &present, cbasn1.Tag(0).Constructed().ContextSpecific()) {
		return errors.New("malformed extensions")
	}
	if !present {
		return nil
	}
	if !list.ReadASN1(&list, cbasn1.SEQUENCE) {
		return errors.New("malformed extensions")
	}
	for !list.Empty() {
		var id asn1.ObjectIdentifier
		var critical bool
		var extension, value cryptobyte.String
		if !list.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&id) ||
			extension.PeekASN1Tag(cbasn1.BOOLEAN) && !extension.ReadASN1Boolean(&critical) ||
			!extension.ReadASN1(&value, cbasn1.OCTET_STRING) {
			return errors.New("malformed extension")
		}
		if critical && l.critical == nil {
			l.critical = id
		}
		switch {
		case id.Equal(oidCRLNumber):
			number := new(big.Int)
			if !value.ReadASN1Integer(number) {
				return errors.New("malformed CRL number")
			}
			l.Number = number
		case id.Equal(oidAuthorityKeyID):
			var keyID cryptobyte.String
			if !value.ReadASN1(&value, cbasn1.SEQUENCE) ||
				!value.ReadOptionalASN1(&keyID, &present, cbasn1.Tag(0).ContextSpecific()) {
				return errors.New("malformed authority key identifier")
			}
			l.AuthorityKeyID = keyID
		}
	}
	return nil
}

// Issuer returns the issuer's name as text.
func (l *RevocationList) Issuer() string { return nameOf(l.RawIssuer) }

// nameOf returns a name as text. If the name can't be parsed, nameOf returns its bytes as RFC 4514 section
// 2.4 does, # and hexadecimal digits.
func nameOf(der []byte) string {
	var rdns pkix.RDNSequence
	if _, err := asn1.Unmarshal(der, &rdns); err != nil {
		return fmt.Sprintf("#%X", der)
	}
	var name pkix.Name
	name.FillFromRDNSequence(&rdns)
	return name.String()
}

// CheckWhole refuses a CRL that may not list all revocations of its issuer. A delta CRL, or a CRL for a
// part of the certificates, has a critical extension (RFC 5280 section 5.2).
func (l *RevocationList) CheckWhole() error {
	if l.malformed != nil {
		return fmt.Errorf("the CRL of %q: %w", l.Issuer(), l.malformed)
	}
	if l.critical != nil {
		return fmt.Errorf("the CRL of %q has the critical extension %s, which espm does not know", l.Issuer(), l.critical)
	}
	return nil
}

// CheckSignatureFrom checks that a CA signed the CRL. Like CheckSignature, it accepts weak hashes.
func (l *RevocationList) CheckSignatureFrom(issuer *x509.Certificate) error {
	switch {
	case !slices.Equal(l.algorithm, l.outer):
		return errors.New("it names two signature algorithms")
	case issuer.Version == 3 && !issuer.BasicConstraintsValid || issuer.BasicConstraintsValid && !issuer.IsCA:
		return fmt.Errorf("%q is no CA", issuer.Subject)
	case issuer.KeyUsage != 0 && issuer.KeyUsage&x509.KeyUsageCRLSign == 0:
		return fmt.Errorf("%q may not sign CRLs (its key usage lacks cRLSign)", issuer.Subject)
	}
	return CheckSignature(issuer.PublicKey, l.algorithm, l.tbs, l.signature)
}

// WeakHash returns the name of the signature's hash if the hash is weak, otherwise "".
func (l *RevocationList) WeakHash() string { return weakHash(l.algorithm) }

// NumberOf returns the number of a CRL, or 0 for a CRL without a number. RFC 5280 section 5.2.3 requires a
// number, but not every tool writes one.
func NumberOf(l *RevocationList) *big.Int {
	if l.Number == nil {
		return new(big.Int)
	}
	return l.Number
}

// Entries are the entries of a CRL in DER, without separators.
type Entries []byte

// Entry is one entry of a CRL. Both fields share the memory of the CRL.
type Entry struct {
	Raw    []byte
	Serial []byte // the contents of the INTEGER

	when cryptobyte.String
}

// All yields the entries in order. All stops at a malformed entry, which a parsed list does not have.
func (e Entries) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for rest := cryptobyte.String(e); !rest.Empty(); {
			entry, ok := readEntry(&rest)
			if !ok || !yield(entry) {
				return
			}
		}
	}
}

// Count returns the number of entries. Count parses all of them.
func (e Entries) Count() int {
	n := 0
	for range e.All() {
		n++
	}
	return n
}

func (e Entries) check() error {
	n := 1
	for rest := cryptobyte.String(e); !rest.Empty(); n++ {
		if _, ok := readEntry(&rest); !ok {
			return fmt.Errorf("malformed entry %d", n)
		}
	}
	return nil
}

func readEntry(list *cryptobyte.String) (Entry, bool) {
	var raw, fields, serial cryptobyte.String
	if !list.ReadASN1Element(&raw, cbasn1.SEQUENCE) {
		return Entry{}, false
	}
	fields = raw
	if !fields.ReadASN1(&fields, cbasn1.SEQUENCE) || !fields.ReadASN1(&serial, cbasn1.INTEGER) || serial.Empty() || !isTime(fields) {
		return Entry{}, false
	}
	return Entry{Raw: raw, Serial: serial, when: fields}, true
}

// Time returns when the certificate was revoked, and false if the time is malformed.
func (e Entry) Time() (time.Time, bool) {
	fields := e.when
	return readTime(&fields)
}

func isTime(s cryptobyte.String) bool {
	return s.PeekASN1Tag(cbasn1.UTCTime) || s.PeekASN1Tag(cbasn1.GeneralizedTime)
}

// skipTime parses a time and advances s. A malformed time is the zero time.
func skipTime(s *cryptobyte.String) time.Time {
	t, ok := readTime(s)
	if !ok {
		var skipped cryptobyte.String
		s.ReadAnyASN1Element(&skipped, nil)
		return time.Time{}
	}
	return t
}

// readTime parses a UTCTime or a GeneralizedTime.
func readTime(s *cryptobyte.String) (t time.Time, ok bool) {
	if t, ok = readUTC(s); ok {
		return t, true
	}
	if s.PeekASN1Tag(cbasn1.UTCTime) {
		ok = s.ReadASN1UTCTime(&t)
	} else {
		ok = s.ReadASN1GeneralizedTime(&t)
	}
	return t, ok
}

// readUTC parses a UTCTime in the form that DER requires, YYMMDDHHMMSSZ, without an allocation.
func readUTC(s *cryptobyte.String) (time.Time, bool) {
	const size = 13
	rest := *s
	var text cryptobyte.String
	if !rest.ReadASN1(&text, cbasn1.UTCTime) || len(text) != size || text[size-1] != 'Z' {
		return time.Time{}, false
	}
	var n [6]int
	for i := range n {
		tens, ones := text[2*i]-'0', text[2*i+1]-'0'
		if tens > 9 || ones > 9 {
			return time.Time{}, false
		}
		n[i] = int(tens)*10 + int(ones)
	}
	year := 2000 + n[0]
	if n[0] >= 50 { // RFC 5280 section 4.1.2.5.1: 50 to 99 are 1950 to 1999
		year = 1900 + n[0]
	}
	t := time.Date(year, time.Month(n[1]), n[2], n[3], n[4], n[5], 0, time.UTC)
	if t.Month() != time.Month(n[1]) || t.Day() != n[2] || t.Hour() != n[3] || t.Minute() != n[4] || t.Second() != n[5] {
		return time.Time{}, false // time.Date has normalized a date that does not exist
	}
	*s = rest
	return t, true
}
