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

// Inspection describes a CA folder.
type Inspection struct {
	ca.Status                  // as Brief returns it, without Files
	Key       bool             // the folder has ca_key.pem
	Public    crypto.PublicKey // of the CA's certificate
}

// Lock locks a folder that exists, like Open, until Close.
func Lock(path string) (io.Closer, error) { return lock(path) }

// Inspect reads a CA folder that no program uses, and changes nothing. It checks that certificates, CRLs
// and private key belong together. The key may be absent. If the key is in
// a token, Inspect does not read ca_key.pem.
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

// NewestCRL returns the content of the file among others whose CRL of the folder's CA has the highest number.
// It returns nil if no number is higher than that of the folder's ca_crl.pem. It ignores files
// that can't be read or are of another CA.
func NewestCRL(path string, others ...string) ([]byte, error) {
	chain, own, err := readCRLs(path, nil)
	if err != nil {
		return nil, err
	}
	newest := own.number
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

// readCRLs reads ca_crt.pem and ca_crl.pem. The CA's certificate is the one with the public key, or the first
// if public is nil.
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
