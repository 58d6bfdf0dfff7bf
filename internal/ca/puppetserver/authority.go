// Package puppetserver is the authority that a running Puppet Server is: it
// signs and revokes through the server's HTTP API and never touches the CA's
// files. OpenVox Server and whatever else speaks that API is the same to it.
//
// Where a rule below is Puppet Server's it is that of 7.9.5, read in its source
// (certificate_authority.clj, certificate_authority_core.clj) and tried on that server, unless a
// version is named. In what they lock 7.9 and 8.7 differ, so no rule here needs a lock
// of the server's: what may be under way is waited for.
package puppetserver

import (
	"errors"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// Options say where the server is and who asks. URL, Certificate, Key and CA are required.
type Options struct {
	URL         string // such as https://puppet.example.com:8140, without a path
	Certificate string // file: the client certificate, PEM
	Key         string // file: its private key, PEM
	CA          string // file: the certificates to trust the server by, PEM

	TTL         time.Duration // of certificates, where the caller asks for none; 0: ca.DefaultTTL, or what the CA has left
	Timeout     time.Duration // of one call; 0: a minute
	RevokeLimit time.Duration // of one call that revokes; 0: ten minutes
	Concurrency int           // calls under way at once; 0: 8

	// SignWait is how long the server may still act on a request or a signing whose
	// answer was lost: the time that it waits for its locks, 5 s and 60 s by
	// default, or that its policy script for autosign takes; 0: 65 seconds.
	SignWait time.Duration
	// Quiet is how long no revocation is sent after the answer to one was
	// lost, so that it comes to its end; 0: as the server's version needs, see quietTime.
	Quiet time.Duration
	// Interrupted says that an earlier process may have a revocation under way at
	// the server, whose answer nobody got.
	Interrupted bool

	Now func() time.Time // nil: time.Now
	Log logrus.FieldLogger
}

func (o Options) filled() Options {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&o.TTL, ca.DefaultTTL)
	set(&o.Timeout, time.Minute)
	set(&o.RevokeLimit, 10*time.Minute)
	set(&o.SignWait, 65*time.Second)
	if o.Concurrency == 0 {
		o.Concurrency = 8
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		log := logrus.New()
		log.SetLevel(logrus.PanicLevel)
		o.Log = log
	}
	return o
}

// Authority is Puppet Server's CA. Its methods may be called at once.
type Authority struct {
	*server
	*signer
	*revoker
	*listing
}

// server asks Puppet Server, and keeps what it answered about its CA.
type server struct {
	opts        Options
	base        *url.URL
	credentials *credentials
	slots       chan struct{} // one for each call under way

	running atomic.Pointer[string] // the server's version, when last asked

	trusting sync.Mutex // held by the call that asks for chain and CRL
	trust    atomic.Pointer[trust]
}

// signer has certificates signed, and finds out what became of a signing whose answer was lost.
type signer struct {
	*server
	made       time.Time // by Options.Now
	unanswered unanswered
}

// revoker has certificates revoked, one call at a time.
type revoker struct {
	*server
	revoking chan struct{} // holds one while nobody revokes; guards the rest
	batch    int           // how many names the next batch has at most
	lost     time.Time     // when the answer to a revocation was lost; zero: none
	unread   bool          // a revocation was sent since the CRL was asked for: that as last seen can't tell of it
	longest  time.Duration // that a /clean took
	poison   map[node.Serial]bool
}

// listing tells which certificates the server has in signed/.
type listing struct{ *server }

// New returns the authority. The server need not run, but the files must be
// there: an error says which is missing or does not fit.
func New(o Options) (*Authority, error) {
	base, err := url.Parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("puppet server: %w", err)
	}
	if base.Scheme != "https" || base.Host == "" || base.User != nil || (base.Path != "" && base.Path != "/") || base.RawQuery != "" {
		return nil, fmt.Errorf("puppet server: %q: must be https://HOST:PORT and no more", o.URL)
	}
	o = o.filled()
	creds, err := loadCredentials(o)
	if err != nil {
		return nil, fmt.Errorf("puppet server %s: %w", base.Host, err)
	}
	asked := &server{opts: o, base: base, credentials: creds, slots: make(chan struct{}, o.Concurrency)}
	a := &Authority{
		server:  asked,
		signer:  &signer{server: asked, made: o.Now(), unanswered: unanswered{since: map[question]time.Time{}}},
		revoker: &revoker{server: asked, revoking: make(chan struct{}, 1), batch: maxBatch, poison: map[node.Serial]bool{}},
		listing: &listing{asked},
	}
	if o.Interrupted {
		a.lost, a.unread = time.Now(), true
	}
	a.revoking <- struct{}{}
	return a, nil
}

// Client returns the certname by which the server knows us.
func (a *server) Client() string { return a.credentials.name() }

// Close closes idle connections.
func (a *server) Close() error {
	a.credentials.close()
	return nil
}

// NewSerial returns "": Puppet Server counts for itself.
func (a *Authority) NewSerial() node.Serial { return "" }

// Traits implements ca.Authority. Puppet Server takes a name to revoke, not a
// serial: 7.9 revokes the certificate in signed/, 8.2.2 and later every unexpired one
// of the name. Protected are our own certname, which the server knows us by, and
// the server's, once it was met.
func (a *Authority) Traits() ca.Traits {
	names := []node.Certname{node.Certname(a.credentials.name()), node.Certname(a.base.Hostname())}
	if met := a.credentials.server.Load(); met != nil {
		names = append(names, node.Certname(*met))
	}
	return ca.Traits{RevokesByName: true, ChoosesSerial: true, Protected: names}
}

var errGone = errors.New("the server does not have it")
