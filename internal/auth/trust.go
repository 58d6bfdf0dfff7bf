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

// Files are what the network listener works with, in PEM. Each may be
// replaced while the daemon runs.
type Files struct {
	Certificate, Key string // the server's
	CA               string // of the clients' certificates: the whole chain
	CRL              string // of each CA in it

	// Kept returns the file CRL as espm itself wrote it last, nil if espm did not. It is asked when the
	// file has changed. If the content is that, it is neither parsed nor copied.
	Kept func() *KeptCRL
}

// KeptCRL is a file that espm has written, with the CRL of one CA of espm's own, which it has in memory.
type KeptCRL struct {
	Issuer     *x509.Certificate
	Number     string
	NextUpdate time.Time
	Lists      func(serial *big.Int) bool // by the CRL, or by a later one
	PEM, Rest  []byte                     // the content of the file, and the part of it that is of other CAs
}

// Trust holds the server's certificate, and the CAs of clients with their CRLs. Run reads
// the files again when they change. What is read is swapped in as a whole, so nobody ever
// waits for the reading.
type Trust struct {
	files Files
	now   func() time.Time
	log   logrus.FieldLogger

	pair    atomic.Pointer[tls.Certificate] // never nil
	clients atomic.Pointer[clients]         // never nil

	reading                sync.Mutex // of the files, which Refresh alone waits for
	pairStamp, clientStamp []pemfile.Stamp
}

// clients is what a read of CAs and CRLs gave: one of the two is set.
type clients struct {
	issuers *issuers
	err     error // why no client certificate can be checked
}

// NewTrust reads the files. A server's certificate or a CA that can't be read
// is an error. A CRL that is missing is not: no client certificate is
// accepted until it is there.
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

// readAgain is how often Run looks whether a file has changed. With the time of the reading it
// makes up the second that docs/access.md promises for a CRL.
const readAgain = 500 * time.Millisecond

// Run reads files again when they have changed, until ctx is done.
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

// Refresh reads the files that have changed. They are in force when it returns. The stamps are of before
// the reading, so that a change in between is seen the next time.
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

// readClients puts what it read into force, an error too: what can't be checked is refused.
func (t *Trust) readClients() *clients {
	read := &clients{}
	read.issuers, read.err = readIssuers(t.files)
	t.clients.Store(read)
	return read
}

// issuers returns the CAs and their CRLs as they were read last.
func (t *Trust) issuers() (*issuers, error) {
	read := t.clients.Load()
	return read.issuers, read.err
}

// Refused looks a certificate up in the CRL of its issuer, as that was read last. A CRL
// that is missing or has expired refuses all certificates of the issuer.
func (t *Trust) Refused(cert, issuer *x509.Certificate) error {
	known, err := t.issuers()
	if err != nil {
		return err
	}
	return known.refused(cert, issuer, t.now())
}

// Names are those that the server's certificate is good for, in lower case.
func (t *Trust) Names() []string {
	leaf := t.pair.Load().Leaf
	var names []string
	for _, name := range append([]string{leaf.Subject.CommonName}, leaf.DNSNames...) {
		names = append(names, strings.ToLower(name))
	}
	return names
}

// Credential is the server's certificate.
func (t *Trust) Credential() node.Credential {
	leaf := t.pair.Load().Leaf
	return node.Credential{Kind: node.ServerCertificate, Name: t.files.Certificate, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
}
