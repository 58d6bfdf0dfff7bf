// Package puppetserver is the authority that uses a running Puppet Server. It
// signs and revokes through the server's HTTP API and never changes the CA's
// files. OpenVox Server has the same API.
//
// If a comment names a rule of Puppet Server without a version, it is a rule of 7.9.5. Its source is
// certificate_authority.clj and certificate_authority_core.clj, and the tests try it on that server.
// Versions 7.9 and 8.7 lock differently. So this package does not rely on the server's locks: after a
// lost answer it waits until the server has finished.
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

// Options name the server and the client certificate. URL, Certificate, Key and CA are required.
type Options struct {
	URL         string // such as https://puppet.example.com:8140, without a path
	Certificate string // file: the client certificate, PEM
	Key         string // file: its private key, PEM
	CA          string // file: the CA certificates that the server's certificate is verified with, PEM

	TTL         time.Duration // of certificates whose request has none; 0: ca.DefaultTTL, limited by the CA's end
	Timeout     time.Duration // of one call; 0: a minute
	RevokeLimit time.Duration // of one call that revokes; 0: ten minutes
	Concurrency int           // the most calls at once; 0: 8

	// SignWait is how long the server may still work on a request or a signing whose
	// answer was lost. It waits for its locks, 5 s and 60 s by
	// default, or for its policy script for autosign. 0: 65 seconds.
	SignWait time.Duration
	// Quiet is how long espm sends no revocation after the answer to one was
	// lost, so that the server finishes it; 0: depends on the server's version, see quietTime.
	Quiet time.Duration
	// Interrupted says that an earlier process ended during a revocation, so the
	// server may still work on it.
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

// Authority is Puppet Server's CA. Its methods may be called concurrently.
type Authority struct {
	*server
	*signer
	*revoker
	*listing
}

// server calls Puppet Server, and caches the CA's chain and CRL.
type server struct {
	opts        Options
	base        *url.URL
	credentials *credentials
	slots       chan struct{} // has one element for each running call

	running atomic.Pointer[string] // the last known version of the server
	signs   atomic.Bool            // the last call of certificate_status was allowed
	pause   pause

	trusting sync.Mutex // locked while a call fetches chain and CRL
	trust    atomic.Pointer[trust]
}

// signer requests certificates, and finds the outcome of a signing whose answer was lost.
type signer struct {
	*server
	made       time.Time // when New made it, by Options.Now
	unanswered unanswered
}

// revoker revokes certificates, one call at a time.
type revoker struct {
	*server
	// revoking has one element while no call revokes. Only the call that took it may use the fields below.
	revoking     chan struct{}
	batch        int                  // the most names of the next batch
	lostAt       time.Time            // when the answer to a revocation was lost; zero: none
	crlStale     bool                 // a revocation was sent since the last fetch of the CRL
	longest      time.Duration        // of a successful /clean
	failedBefore map[node.Serial]bool // these are revoked one by one
}

// listing lists the certificates in the server's signed/.
type listing struct{ *server }

// New returns the authority. The server need not run, but the files must
// exist. The error names the file that is missing or wrong.
func New(o Options) (*Authority, error) {
	base, err := url.Parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("puppet server: %w", err)
	}
	if base.Scheme != "https" || base.Host == "" || base.User != nil || (base.Path != "" && base.Path != "/") || base.RawQuery != "" {
		return nil, fmt.Errorf("puppet server: %q: must be https://HOST:PORT without a path", o.URL)
	}
	o = o.filled()
	creds, err := loadCredentials(o)
	if err != nil {
		return nil, fmt.Errorf("puppet server %s: %w", base.Host, err)
	}
	asked := &server{opts: o, base: base, credentials: creds, slots: make(chan struct{}, o.Concurrency)}
	a := &Authority{
		server:  asked,
		signer:  &signer{server: asked, made: o.Now(), unanswered: unanswered{since: map[pending]time.Time{}}},
		revoker: &revoker{server: asked, revoking: make(chan struct{}, 1), batch: maxBatch, failedBefore: map[node.Serial]bool{}},
		listing: &listing{asked},
	}
	if o.Interrupted {
		a.lostAt, a.crlStale = time.Now(), true
	}
	a.revoking <- struct{}{}
	return a, nil
}

// Client returns the certname in the client certificate.
func (a *server) Client() string { return a.credentials.name() }

// Close closes idle connections.
func (a *server) Close() error {
	a.credentials.close()
	return nil
}

// NewSerial returns "", as Puppet Server chooses the serial.
func (a *Authority) NewSerial() node.Serial { return "" }

// Traits implements ca.Authority. Puppet Server revokes by name, not by
// serial: 7.9 revokes the certificate in signed/, 8.2.2 and later revoke every unexpired certificate
// of the name. The client certificate's name is protected, and after the first connection the
// server's too.
func (a *Authority) Traits() ca.Traits {
	names := []node.Certname{node.Certname(a.credentials.name()), node.Certname(a.base.Hostname())}
	if met := a.credentials.server.Load(); met != nil {
		names = append(names, node.Certname(*met))
	}
	return ca.Traits{RevokesByName: true, ChoosesSerial: true, Protected: names}
}

var errGone = errors.New("the server does not have it")
