package directory

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/pemfile"
)

// Options are how an Authority works. The zero value works on the real disk,
// clock and randomness and publishes nowhere.
type Options struct {
	// Publish lists further files that get the CRL chain, such as Puppet
	// Server's hostcrl. Their folders must exist.
	Publish []string
	// Key signs, where ca_key.pem does not: it is in a token. It must belong to ca_crt.pem.
	Key crypto.Signer
	// TTL of certificates whose request names none; 0: ca.DefaultTTL. One that
	// reaches beyond the CA's own end is cut to that.
	TTL time.Duration
	// CRLValidity is the time from a CRL to its nextUpdate; 0: five years, as
	// Puppet Server has it. It is signed anew when a third of that is left.
	CRLValidity time.Duration
	// KeepExpired is how long a certificate stays on the CRL after its end; 0: thirty days.
	KeepExpired time.Duration
	Disk        durable.Disk
	Now         func() time.Time
	// Uptime is the time since some fixed moment, by a clock that nobody sets.
	Uptime func() time.Duration
	Rand   io.Reader // of serial numbers
	Log    logrus.FieldLogger
}

const (
	defaultCRLValidity = 5 * 365 * 24 * time.Hour
	defaultKeepExpired = 30 * 24 * time.Hour
)

func (o Options) withDefaults() Options {
	if o.TTL == 0 {
		o.TTL = ca.DefaultTTL
	}
	if o.CRLValidity == 0 {
		o.CRLValidity = defaultCRLValidity
	}
	if o.KeepExpired == 0 {
		o.KeepExpired = defaultKeepExpired
	}
	if o.Disk == nil {
		o.Disk = durable.OS
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Uptime == nil {
		began := time.Now()
		o.Uptime = func() time.Duration { return time.Since(began) }
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		o.Log = silent
	}
	return o
}

// Authority is the one owner of a Puppet CA directory. It implements ca.Authority.
type Authority struct{ *caretaker }

// folder is the CA directory but for its CRL.
type folder struct {
	dir       string
	opts      Options
	lock      *os.File
	chain     []*pemfile.RawCertificate // the signing CA first, the root last
	chainPEM  []byte
	issuer    *x509.Certificate // the signing CA
	inventory *inventory
	names     nameLocks
	signer    signer
	started   time.Time     // by Options.Now
	startedAt time.Duration // by Options.Uptime
}

// crlKeeper writes ca_crl.pem and its copies, and settles what others wrote there.
type crlKeeper struct {
	*folder
	// revoking orders all writes of the CRL and its copies.
	revoking sync.Mutex
	unsynced bool                     // a write of ca_crl.pem failed: what the disk holds may not last
	crl      atomic.Pointer[crlChain] // what the disk holds, as far as is known
	listed   listing                  // what the CA's own CRL of it lists
	own      *crlFile
	copies   []*crlFile
}

// caretaker renews the CRL in time.
type caretaker struct {
	*crlKeeper
	care care
}

var _ ca.Authority = (*Authority)(nil)

// Open takes over the CA directory at path, whoever made it: Create, Puppet
// Server 6 to 8, or an older Puppet with one self-signed CA. It locks the
// folder until Close, removes what a killed process left half written, and
// publishes the CRL where a copy is missing or old; what such a copy lists and
// ca_crl.pem does not is kept, in a new CRL. It refuses a folder that it can't work on,
// and says why: a key that can't be read, is encrypted or open to everybody; a chain
// out of order; a CRL that is missing or signed by another key; one that is older than
// a published copy, or than what this folder had before. A copy that can't be written
// is logged, and written by the next Care or Revoke.
func Open(path string, o Options) (*Authority, error) {
	held, err := lock(path)
	if err != nil {
		return nil, err
	}
	a := &Authority{&caretaker{crlKeeper: &crlKeeper{folder: &folder{dir: path, opts: o.withDefaults(), lock: held}}}}
	a.started, a.startedAt = a.opts.Now(), a.opts.Uptime()
	a.names.seed = maphash.MakeSeed()
	a.own = &crlFile{path: a.file("ca_crl.pem")}
	for _, copied := range o.Publish {
		a.copies = append(a.copies, &crlFile{path: copied})
	}
	if err := a.load(); err != nil {
		return nil, errors.Join(err, held.Close())
	}
	return a, nil
}

// Close gives the folder free. No other call may be under way.
func (a *Authority) Close() error { return a.lock.Close() }

func (a *Authority) load() error {
	if err := a.tidy(); err != nil {
		return err
	}
	key, err := a.key()
	if err != nil {
		return err
	}
	if a.chain, a.chainPEM, err = loadChain(a.file("ca_crt.pem"), key.Public()); err != nil {
		return err
	}
	if a.issuer, err = named(a.chain[0].X509); err == nil {
		err = canSignCRLs(a.issuer)
	}
	if err != nil {
		return fmt.Errorf("CA certificate %s: %w", a.file("ca_crt.pem"), err)
	}
	a.signer = signer{issuer: a.issuer, key: key}
	a.inventory = &inventory{path: a.file("inventory.txt"), disk: a.opts.Disk}
	if err := a.loadCRL(); err != nil {
		return err
	}
	cut, err := a.inventory.repair()
	if err != nil {
		return err
	}
	if cut > 0 {
		a.opts.Log.WithFields(logrus.Fields{"path": a.inventory.path, "bytes": cut}).
			Warn("cut off a torn last line of the inventory")
	}
	if err := a.publish(a.crl.Load()); err != nil {
		a.opts.Log.WithError(err).Warn("the CRL is not published everywhere")
	}
	return nil
}

// key is the one in the folder, unless it is held elsewhere.
func (a *folder) key() (crypto.Signer, error) {
	path := a.file("ca_key.pem")
	if a.opts.Key == nil {
		return loadKey(path)
	}
	if _, err := os.Lstat(path); err == nil {
		a.opts.Log.WithField("path", path).Warn("the CA's key is in a token, but this file is there too: take it off this machine")
	}
	return a.opts.Key, nil
}

// tidy removes temporary files of writes that a kill cut short, and makes the
// folder of certificates, which an empty CA may lack.
func (a *folder) tidy() error {
	if err := os.MkdirAll(a.file("signed"), 0o755); err != nil {
		return unavailable(err)
	}
	signed := filepath.Clean(a.file("signed"))
	ours := map[string]map[string]bool{signed: {}} // names, by their folder
	for _, path := range append([]string{a.file("ca_crl.pem"), a.file(numberFile)}, a.opts.Publish...) {
		dir, name := filepath.Dir(path), filepath.Base(path)
		if ours[dir] == nil {
			ours[dir] = make(map[string]bool)
		}
		ours[dir][name] = true
	}
	for dir, names := range ours {
		n, err := durable.RemoveStale(dir, func(name string) bool {
			return names[name] || dir == signed && strings.HasSuffix(name, ".pem")
		})
		if err != nil {
			a.opts.Log.WithError(err).WithField("path", dir).Warn("can't remove temporary files of an earlier run")
		} else if n > 0 {
			a.opts.Log.WithFields(logrus.Fields{"path": dir, "files": n}).Info("removed temporary files of an earlier run")
		}
	}
	return nil
}

func (a *folder) file(elem ...string) string {
	return filepath.Join(slices.Insert(elem, 0, a.dir)...)
}
