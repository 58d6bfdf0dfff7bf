package directory

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/pemfile"
)

// Inspection is what a CA folder holds.
type Inspection struct {
	ca.Status                  // as Brief has it, without Files
	Key       bool             // ca_key.pem is there
	Public    crypto.PublicKey // of the CA's certificate
}

// Lock takes the folder, which must exist, as Open does, until Close.
func Lock(path string) (io.Closer, error) { return lock(path) }

// Inspect looks at a CA folder that nobody works on, and changes nothing: certificates, CRLs, that these
// belong together and, where it is there, that the private key is theirs. Where the key is in
// a token a ca_key.pem does not count: it is not read.
func Inspect(path string, inToken bool) (Inspection, error) {
	public, has, err := inspectKey(filepath.Join(path, "ca_key.pem"), inToken)
	if err != nil {
		return Inspection{}, err
	}
	chain, crl, err := readCRLs(path, public)
	if err != nil {
		return Inspection{}, err
	}
	a := crlKeeper{folder: &folder{issuer: chain[0].X509}, own: &crlFile{}}
	status := a.brief(crl.crlChain)
	status.Files = nil
	return Inspection{status, has, chain[0].X509.PublicKey}, nil
}

func inspectKey(path string, inToken bool) (public crypto.PublicKey, has bool, err error) {
	if inToken {
		_, err := os.Lstat(path)
		return nil, err == nil, nil
	}
	key, err := loadKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return key.Public(), true, nil
}

// NewestCRL returns the content of the file, of ca_crl.pem in the folder and
// the others, whose CRL of the folder's CA has the highest number; nil: it is the folder's
// own. Files that can't be read, or that are another CA's, don't count.
func NewestCRL(path string, others ...string) ([]byte, error) {
	chain, held, err := readCRLs(path, nil)
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

// readCRLs reads ca_crt.pem, of the CA with that public key, and ca_crl.pem. Where no key is known,
// the first certificate is the CA's.
func readCRLs(path string, public crypto.PublicKey) ([]*pemfile.RawCertificate, *crlContents, error) {
	certFile, listFile := filepath.Join(path, "ca_crt.pem"), filepath.Join(path, "ca_crl.pem")
	if public == nil {
		data, err := os.ReadFile(certFile)
		if err != nil {
			return nil, nil, fmt.Errorf("CA certificate: %w", err)
		}
		certs, _, err := parseCertificates(data)
		if err != nil {
			return nil, nil, fmt.Errorf("CA certificate %s: %w", certFile, err)
		}
		if certs[0].X509 == nil {
			return nil, nil, fmt.Errorf("CA certificate %s: %w", certFile, certs[0].Unreadable)
		}
		public = certs[0].X509.PublicKey
	}
	chain, _, err := loadChain(certFile, public)
	if err != nil {
		return nil, nil, err
	}
	data, err := os.ReadFile(listFile)
	if err != nil {
		return nil, nil, fmt.Errorf("CRL: %w", err)
	}
	crl, err := parseCRLs(data, chain)
	if err != nil {
		return nil, nil, fmt.Errorf("CRL %s: %w", listFile, err)
	}
	return chain, crl, nil
}
