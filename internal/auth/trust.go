package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/secretfile"
)

// Files are the PEM files of the network listener. Each file may be replaced while the daemon runs.
type Files struct {
	Certificate, Key string // of the server
	CA               string // the CAs of client certificates, up to the root
	CRL              string // a CRL of each CA

	// Kept returns the content that espm last wrote to the file CRL; nil if espm does not write the file. Trust calls
	// Kept after a change of the file. If the file has that content, espm's own CRL is not parsed again.
	Kept func() *KeptCRL
}

// KeptCRL is the content of a CRL file that espm has written, with the CRL of espm's own CA. The values of that CRL
// are in memory.
type KeptCRL struct {
	Issuer     *x509.Certificate
	Number     string
	NextUpdate time.Time
	Lists      func(serial *big.Int) bool // reports whether the CRL or a later one lists a serial
	PEM, Rest  []byte                     // the content of the file, and the part with the CRLs of other CAs
}

// Trust has the server's certificate, and the CAs of clients with their CRLs. Run reads changed files again. The new
// content replaces the old at once, so no handshake and no call waits for a read.
type Trust struct {
	files Files
	now   func() time.Time
	log   logrus.FieldLogger

	pair    atomic.Pointer[tls.Certificate] // never nil
	clients atomic.Pointer[clients]         // never nil

	reading                sync.Mutex // held during a read of the files; only Refresh waits for it
	pairStamp, clientStamp []pemfile.Stamp
}

// clients is the result of reading the CAs and CRLs. Exactly one of the two fields is set.
type clients struct {
	issuers *issuers
	err     error // why no client certificate can be checked
}

// NewTrust reads the files. If the server's certificate or a CA can't be read, NewTrust fails. A missing CRL is no
// error, but no client certificate is accepted until the CRL exists.
func NewTrust(files Files, now func() time.Time, log logrus.FieldLogger) (*Trust, error) {
	t := &Trust{files: files, now: now, log: log}
	t.pairStamp = pemfile.Stamps(files.Certificate, files.Key)
	pair, err := t.readPair()
	if err != nil {
		return nil, fmt.Errorf("certificate %s and key %s: %w", files.Certificate, files.Key, err)
	}
	t.pair.Store(pair)
	if _, err := readCAs(files.CA); err != nil {
		return nil, err
	}
	t.clientStamp = pemfile.Stamps(files.CA, files.CRL)
	if read := t.readClients(); read.err != nil {
		log.WithError(read.err).Error("no client certificate is accepted")
	}
	return t, nil
}

// readAgain is the interval between two checks of the files. docs/access.md promises that a new CRL is in force within
// a second, so the interval leaves half a second for the read.
const readAgain = 500 * time.Millisecond

// Run reads changed files again, until ctx is done.
func (t *Trust) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(readAgain):
			t.Refresh()
		}
	}
}

// Refresh reads changed files, and puts the new content into force before it returns. The stamps are taken before the
// read, so that the next Refresh sees a change during this one.
func (t *Trust) Refresh() {
	t.reading.Lock()
	defer t.reading.Unlock()
	if now := pemfile.Stamps(t.files.CA, t.files.CRL); !slices.Equal(now, t.clientStamp) {
		t.clientStamp = now
		if read := t.readClients(); read.err != nil {
			t.log.WithError(read.err).Error("no client certificate is accepted: correct the CA or CRL file, and espm reads it again")
		} else {
			t.log.WithFields(logrus.Fields{"ca": t.files.CA, "crl": t.files.CRL}).Info("CA and CRL read again")
		}
	}
	if now := pemfile.Stamps(t.files.Certificate, t.files.Key); !slices.Equal(now, t.pairStamp) {
		t.pairStamp = now
		log := t.log.WithFields(logrus.Fields{"certificate": t.files.Certificate, "key": t.files.Key})
		pair, err := t.readPair()
		if err != nil {
			log.WithError(err).Error("the new server certificate can't be used, the old one stays")
			return
		}
		t.pair.Store(pair)
		log.Info("server certificate read again")
	}
}

func (t *Trust) readPair() (*tls.Certificate, error) {
	pair, err := secretfile.X509KeyPair("server key", t.files.Certificate, t.files.Key)
	return &pair, err
}

// readClients puts its result into force, even an error: a certificate that can't be checked must be refused.
func (t *Trust) readClients() *clients {
	read := &clients{}
	read.issuers, read.err = readIssuers(t.files)
	t.clients.Store(read)
	return read
}

// issuers returns the CAs and CRLs of the last read.
func (t *Trust) issuers() (*issuers, error) {
	read := t.clients.Load()
	return read.issuers, read.err
}

// Refused returns an error if the CRL of the issuer, as last read, refuses a certificate. A missing or expired CRL
// refuses all certificates of the issuer.
func (t *Trust) Refused(cert, issuer *x509.Certificate) error {
	known, err := t.issuers()
	if err != nil {
		return err
	}
	return known.refused(cert, issuer, t.now())
}

// Names returns the names in the server's certificate, in lower case.
func (t *Trust) Names() []string {
	leaf := t.pair.Load().Leaf
	var names []string
	for _, name := range append([]string{leaf.Subject.CommonName}, leaf.DNSNames...) {
		names = append(names, strings.ToLower(name))
	}
	return names
}

// Credential returns the name and the validity of the server's certificate.
func (t *Trust) Credential() node.Credential {
	leaf := t.pair.Load().Leaf
	return node.Credential{Kind: node.ServerCertificate, Name: t.files.Certificate, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
}
