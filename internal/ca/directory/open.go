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

// Options configure an Authority. The zero value uses the real disk,
// clock and randomness, and publishes no copies.
type Options struct {
	// Publish lists files that get a copy of the CRL chain, such as Puppet
	// Server's hostcrl. Their folders must exist.
	Publish []string
	// Key is a key in a token, used instead of ca_key.pem. It must belong to ca_crt.pem.
	Key crypto.Signer
	// TTL of certificates whose request has none; 0: ca.DefaultTTL. It is
	// limited by the CA's end.
	TTL time.Duration
	// CRLValidity is the time from a CRL to its nextUpdate; 0: five years, as in
	// Puppet Server. A new CRL is signed when a third of it is left.
	CRLValidity time.Duration
	// KeepExpired is how long a certificate stays on the CRL after its end; 0: thirty days.
	KeepExpired time.Duration
	Disk        durable.Disk
	Now         func() time.Time
	// Clock says whether Now can be believed; nil: it can.
	Clock Clock
	// Uptime is the time since some fixed moment, by a monotonic clock.
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
	if o.Clock == nil {
		o.Clock = anyClock{}
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

// Authority owns a Puppet CA directory. It implements ca.Authority.
type Authority struct{ *caretaker }

// folder is the CA directory without its CRL.
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

// crlKeeper writes ca_crl.pem and its copies, and merges changes by other programs.
type crlKeeper struct {
	*folder
	// revoking must be locked to write the CRL or a copy.
	revoking sync.Mutex
	unsynced bool                     // the last write of ca_crl.pem failed: the file may not be durable
	crl      atomic.Pointer[crlChain] // the last known content of ca_crl.pem
	listed   listing                  // the serials in it
	own      *crlFile
	copies   []*crlFile
}

// caretaker does the periodic work on the CRL.
type caretaker struct {
	*crlKeeper
	care care
}

var _ ca.Authority = (*Authority)(nil)

// Open opens the CA directory at path. Create, Puppet
// Server 6 to 8, or an older Puppet with one self-signed CA may have made it. Open locks the
// folder until Close, removes the temporary files of a killed process, and
// publishes the CRL if a copy is missing or old. If a copy lists certificates that
// ca_crl.pem does not, a new CRL lists them too. A copy that can't be written
// is logged, and the next Care or Revoke retries it.
//
// Open returns an error for a key that can't be read, is encrypted or open to everybody, for a chain
// out of order, and for a CRL that is missing, signed by another key, or older than
// a published copy or than the folder's last CRL.
func Open(path string, o Options) (*Authority, error) {
	locked, err := lock(path)
	if err != nil {
		return nil, err
	}
	a := &Authority{&caretaker{crlKeeper: &crlKeeper{folder: &folder{dir: path, opts: o.withDefaults(), lock: locked}}}}
	a.started, a.startedAt = a.opts.Now(), a.opts.Uptime()
	a.names.seed = maphash.MakeSeed()
	a.own = &crlFile{path: a.file("ca_crl.pem")}
	for _, copied := range o.Publish {
		a.copies = append(a.copies, &crlFile{path: copied})
	}
	if err := a.load(); err != nil {
		return nil, errors.Join(err, locked.Close())
	}
	return a, nil
}

// Close unlocks the folder. No other call may run.
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
	if a.issuer, err = withKeyID(a.chain[0].X509); err == nil {
		err = canSignCRLs(a.issuer)
	}
	if err != nil {
		return fmt.Errorf("CA certificate %s: %w", a.file("ca_crt.pem"), err)
	}
	a.signer = signer{issuer: a.issuer, key: key}
	a.opts.Clock.Learn(a.issuer.NotBefore, time.Time{})
	a.inventory = &inventory{path: a.file("inventory.txt"), disk: a.opts.Disk}
	putOff, err := a.loadCRL()
	if err != nil {
		return err
	}
	ended, err := a.inventory.endLine()
	if err != nil {
		return err
	}
	if ended {
		a.opts.Log.WithField("path", a.inventory.path).Warn("the last line of the inventory had no line end; espm added it")
	}
	if putOff {
		return nil
	}
	if err := a.publish(a.crl.Load()); err != nil {
		a.opts.Log.WithError(err).Warn("not all copies of the CRL could be written; espm retries every minute")
	}
	return nil
}

// key returns Options.Key, or else the key in the folder.
func (a *folder) key() (crypto.Signer, error) {
	path := a.file("ca_key.pem")
	if a.opts.Key == nil {
		return loadKey(path)
	}
	if _, err := os.Lstat(path); err == nil {
		a.opts.Log.WithField("path", path).Warn("the CA's key is in a token, but this file is there too: remove it from this machine")
	}
	return a.opts.Key, nil
}

// tidy removes the temporary files of a killed process, and makes the
// folder signed/, which an empty CA may lack.
func (a *folder) tidy() error {
	if err := os.MkdirAll(a.file("signed"), 0o755); err != nil {
		return unavailable(err)
	}
	signed := filepath.Clean(a.file("signed"))
	ours := map[string]map[string]bool{signed: {}} // names, by their folder
	for _, path := range append([]string{a.file("ca_crl.pem"), a.file(numberFile)}, a.opts.Publish...) {
		if target, err := durable.Target(path); err == nil { // after an error, the first write reports it
			path = target
		}
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
