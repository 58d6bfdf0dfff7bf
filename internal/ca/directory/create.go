package directory

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
)

// CreateOptions describe a new CA.
type CreateOptions struct {
	// Host sets the CA's name to "Puppet CA: HOST", like Puppet's ca_name.
	Host string
	// Name is the CA's full name. It overrides Host.
	Name string
	// Key is ca.RSA4096 (default), ca.RSA3072, ca.RSA2048, ca.ECP256 or
	// ca.ECP384, for both the root and the intermediate.
	Key ca.KeyAlgorithm
	// NewKey makes the signing CA's key outside of the directory, such as in a token. nil: Create
	// writes it to ca_key.pem.
	NewKey func(ca.KeyAlgorithm) (crypto.Signer, error)
	// Intermediate makes a root that certifies the signing CA, like
	// `puppetserver ca setup`. espm does not use the root's key, root_key.pem: move it to a
	// safe place.
	Intermediate bool
	// Validity of the CA and of its first CRL; 0: fifteen years, like `puppetserver ca setup`.
	Validity time.Duration
	Now      func() time.Time
	Disk     durable.Disk
}

const (
	defaultCAValidity = 15 * 365 * 24 * time.Hour
	maxCommonName     = 64 // RFC 5280 ub-common-name, which OpenSSL enforces
)

// Create makes a CA directory at path, where nothing may be but an empty
// folder. Create is atomic: a kill leaves only a hidden
// folder beside path, which the next Create removes. If path is an empty folder and root calls
// Create, the folder's owner gets all files.
func Create(path string, o CreateOptions) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	path = filepath.Clean(path)
	if err := checkEmpty(path); err != nil {
		return err
	}
	files, err := newCA(o)
	if err != nil {
		return fmt.Errorf("create CA in %s: %w", path, err)
	}
	if err := install(path, files, o.Disk); err != nil {
		return fmt.Errorf("create CA in %s: %w", path, err)
	}
	return nil
}

func (o CreateOptions) withDefaults() (CreateOptions, error) {
	if o.Name == "" {
		if _, err := node.ParseCertname(o.Host); err != nil {
			return o, fmt.Errorf("create CA: host: %w", err)
		}
		o.Name = "Puppet CA: " + o.Host
	}
	if len(o.Name) > maxCommonName {
		return o, node.Invalid("ca_name", "at most %d bytes, %q has %d", maxCommonName, o.Name, len(o.Name))
	}
	if o.Key == "" {
		o.Key = ca.RSA4096
	}
	if o.Validity == 0 {
		o.Validity = defaultCAValidity
	}
	if o.Validity < ca.MinTTL || o.Validity > ca.MaxTTL {
		return o, node.Invalid("ca_validity", "from %v to %v (fifty years), is %v", node.Duration(ca.MinTTL), node.Duration(ca.MaxTTL), node.Duration(o.Validity))
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Disk == nil {
		o.Disk = durable.OS
	}
	return o, nil
}

// checkEmpty returns an error if the folder at path exists and is not empty.
func checkEmpty(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("create CA: %w", err)
	}
	if len(entries) > 0 {
		var names []string
		for _, e := range entries[:min(len(entries), 8)] {
			names = append(names, e.Name())
		}
		return fmt.Errorf("create CA: %s is not empty, it has %s: %w", path, strings.Join(names, ", "), fs.ErrExist)
	}
	return nil
}

// caFile is a file of a new CA directory.
type caFile struct {
	name string
	mode fs.FileMode
	data []byte
}

// newCA makes the same files as `puppetserver ca setup` and Puppet Server: the same
// names, contents, serial numbers and modes. Only the key's mode differs: no group may read it.
func newCA(o CreateOptions) ([]caFile, error) {
	now := o.Now().UTC().Truncate(time.Second)
	key, err := o.newKey()
	if err != nil {
		return nil, err
	}
	var files []caFile
	var parent *authorityPair
	number := int64(1)
	if o.Intermediate {
		if parent, err = newRoot(o, now); err != nil {
			return nil, err
		}
		rootKey, err := ca.MarshalKeyPEM(parent.key)
		if err != nil {
			return nil, err
		}
		files = append(files, caFile{"root_key.pem", 0o600, rootKey})
		number = 2
	}
	own, err := newPair(o.Name, number, key, parent, now, o.Validity)
	if err != nil {
		return nil, err
	}
	more, err := own.files(parent)
	if err != nil {
		return nil, err
	}
	files = append(files, more...)
	if o.NewKey != nil {
		return files, nil
	}
	private, err := ca.MarshalKeyPEM(own.key)
	return append(files, caFile{"ca_key.pem", 0o600, private}), err
}

func (o CreateOptions) newKey() (crypto.Signer, error) {
	if o.NewKey != nil {
		return o.NewKey(o.Key)
	}
	return caKey(o.Key)
}

// newRoot gives the root a unique name, like `puppetserver ca setup`.
func newRoot(o CreateOptions, now time.Time) (*authorityPair, error) {
	key, err := caKey(o.Key)
	if err != nil {
		return nil, err
	}
	id, err := ca.KeyID(key.Public())
	if err != nil {
		return nil, err
	}
	return newPair(fmt.Sprintf("Puppet Root CA: %x", id[:7]), 1, key, nil, now, o.Validity)
}

func caKey(alg ca.KeyAlgorithm) (crypto.Signer, error) {
	if _, err := ca.ParseKeyAlgorithm(string(alg)); err != nil && alg != ca.ECP384 {
		return nil, node.Invalid("ca_key_algorithm", "%q: must be one of %v or %s", alg, ca.KeyAlgorithms(), ca.ECP384)
	}
	return ca.GenerateKey(alg)
}

// authorityPair is a CA's key, certificate and first CRL.
type authorityPair struct {
	key  crypto.Signer
	cert *x509.Certificate
	crl  []byte // PEM
}

// newPair makes a CA certificate for key, signed by parent, or self-signed if parent is nil. The extensions
// are Puppet's CA_EXTENSIONS (puppetserver-ca, local_certificate_authority.rb).
func newPair(name string, serial int64, key crypto.Signer, parent *authorityPair, now time.Time, validity time.Duration) (*authorityPair, error) {
	subject, err := ca.CommonName(name)
	if err != nil {
		return nil, err
	}
	keyID, err := ca.KeyID(key.Public())
	if err != nil {
		return nil, err
	}
	comment, err := ca.NetscapeComment()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(serial),
		RawSubject:            subject,
		NotBefore:             now.Add(-ca.Backdate),
		NotAfter:              now.Add(validity),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId:          keyID,
		AuthorityKeyId:        keyID,
		ExtraExtensions:       []pkix.Extension{comment},
	}
	issuer, issuerKey := template, key
	if parent != nil {
		issuer, issuerKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		return nil, fmt.Errorf("create CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("create CA certificate: %w", err)
	}
	crl, err := signer{issuer: cert, key: key}.newCRL(new(big.Int), nil, now.Add(-ca.Backdate), cert.NotAfter)
	if err != nil {
		return nil, err
	}
	return &authorityPair{key, cert, pemfile.Encode(pemfile.CRL, crl...)}, nil
}

func (p *authorityPair) files(parent *authorityPair) ([]caFile, error) {
	spki, err := x509.MarshalPKIXPublicKey(p.key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	certs := pemfile.Encode(pemfile.Certificate, p.cert.Raw)
	crls := p.crl
	// The inventory of a self-signed CA has the CA's own certificate. The certificate of an intermediate
	// has a serial of the root, so the intermediate's inventory is empty.
	serial, inventory := "0002", inventoryEntry(p.cert).String()+"\n"
	if parent != nil {
		certs = append(certs, pemfile.Encode(pemfile.Certificate, parent.cert.Raw)...)
		crls = append(crls, parent.crl...)
		serial, inventory = "0001", ""
	}
	return []caFile{
		{"ca_pub.pem", 0o644, pemfile.Encode("PUBLIC KEY", spki)},
		{"ca_crt.pem", 0o644, certs},
		{"ca_crl.pem", 0o644, crls},
		{"infra_crl.pem", 0o644, crls},
		{"infra_inventory.txt", 0o644, nil},
		{"infra_serials", 0o644, nil},
		{"inventory.txt", 0o644, []byte(inventory)},
		{"serial", 0o644, []byte(serial)},
	}, nil
}

// install writes the files into a new folder beside path and renames it to path.
func install(path string, files []caFile, disk durable.Disk) (err error) {
	parent, base := filepath.Split(path)
	parent = filepath.Clean(parent)
	prefix := "." + base + ".espm-new-"
	if err := removeHalfMade(parent, prefix); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	for _, dir := range []string{"signed", "requests"} {
		if err := mkdir(filepath.Join(temp, dir)); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := disk.WriteFile(filepath.Join(temp, f.name), f.data, f.mode); err != nil {
			return err
		}
	}
	if err := os.Chmod(temp, 0o755); err != nil { // #nosec G302 -- a folder of public files, as Puppet has it
		return err
	}
	if err := giveToOwner(temp, path); err != nil {
		return err
	}
	// os.Rename refuses a target that is a folder, but the system call replaces an empty folder.
	if err := unix.Rename(temp, path); err != nil {
		return fmt.Errorf("move %s to %s: %w", temp, path, err)
	}
	return durable.SyncFolder(parent)
}

func removeHalfMade(parent, prefix string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// mkdir makes a folder with Puppet's mode, independent of the umask.
func mkdir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755) // #nosec G302 -- a folder of public files, as Puppet has it
}

// giveToOwner changes the owner of everything in dir to that of the empty folder at path.
func giveToOwner(dir, path string) error {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	if errors.Is(err, fs.ErrNotExist) || os.Geteuid() != 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	return filepath.WalkDir(dir, func(file string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(file, int(st.Uid), int(st.Gid)) // #nosec G122 -- a folder that only espm writes yet; no link is followed
	})
}
