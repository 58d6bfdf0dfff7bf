package directory

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/espm-project/espm/internal/ca"
)

// Inspection is what a CA folder holds.
type Inspection struct {
	ca.Status      // as Brief has it, without Files
	Key       bool // the private key is there
}

// Lock takes the folder, which must exist, as Open does, until Close.
func Lock(path string) (io.Closer, error) { return lock(path) }

// Inspect looks at a CA folder that nobody works on, and changes nothing: certificates, CRLs, that these
// belong together and, where it is there, that the private key is theirs.
func Inspect(path string) (Inspection, error) {
	certFile, listFile, keyFile := filepath.Join(path, "ca_crt.pem"), filepath.Join(path, "ca_crl.pem"), filepath.Join(path, "ca_key.pem")
	data, err := os.ReadFile(certFile)
	if err != nil {
		return Inspection{}, fmt.Errorf("CA certificate: %w", err)
	}
	certs, _, err := parseCertificates(data)
	if err != nil {
		return Inspection{}, fmt.Errorf("CA certificate %s: %w", certFile, err)
	}
	public, has := certs[0].PublicKey, false
	switch key, err := loadKey(keyFile); {
	case err == nil:
		public, has = key.Public(), true
	case !errors.Is(err, fs.ErrNotExist):
		return Inspection{}, err
	}
	chain, _, err := loadChain(certFile, public)
	if err != nil {
		return Inspection{}, err
	}
	if data, err = os.ReadFile(listFile); err != nil {
		return Inspection{}, fmt.Errorf("CRL: %w", err)
	}
	crl, err := parseCRLs(data, chain)
	if err != nil {
		return Inspection{}, fmt.Errorf("CRL %s: %w", listFile, err)
	}
	a := Authority{chain: chain, own: &crlFile{}}
	status := a.brief(crl.crlChain)
	status.Files = nil
	return Inspection{status, has}, nil
}

// NewestCRL returns the content of the file, of ca_crl.pem in the folder and
// the others, whose CRL of the folder's CA has the highest number; nil: it is the folder's
// own. Files that can't be read, or that are another CA's, don't count.
func NewestCRL(path string, others ...string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(path, "ca_crt.pem"))
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	chain, _, err := parseCertificates(data)
	if err != nil {
		return nil, err
	}
	if data, err = os.ReadFile(filepath.Join(path, "ca_crl.pem")); err != nil {
		return nil, fmt.Errorf("CRL: %w", err)
	}
	held, err := parseCRLs(data, chain)
	if err != nil {
		return nil, err
	}
	newest := held.number
	var found []byte
	for _, file := range others {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if theirs, err := parseCRLs(data, chain); err == nil && theirs.number.Cmp(newest) > 0 {
			newest, found = theirs.number, data
		}
	}
	return found, nil
}
