// Package registry holds what espm does: nodes are registered, classified,
// provisioned and terminated, groups are kept. It decides what is committed
// together and in which order the outside world is changed.
//
// # Provisioning
//
//	state                                     a crash here leaves
//	1  intent committed, with the node        an intent; nothing was signed
//	2  the authority has signed               an intent; a certificate that the authority knows
//	3  certificate committed, intent closed   a provisioned node
//	4  answered                               the same
//
// An open intent is settled at the start, or after a failed issue: espm asks the authority whether it
// signed a certificate for the intent. If the caller has the private key (it sent a CSR), espm adopts the
// certificate. Otherwise the key is lost: espm revokes the certificate, and removes a registration that was
// committed with the intent. A crash between 3 and 4 leaves a provisioned node whose caller has no answer.
// A retry with the same request id revokes that certificate and issues another.
//
// # Importing
//
// Import adopts a certificate that the authority signed without espm, and its registration, in one commit.
// Nothing is signed or revoked, so there is nothing to settle. Terminate revokes an adopted certificate
// like any other.
//
// # Terminating
//
//	1  one commit: the node is removed, its tombstone and the orders to revoke are added
//	2  the authority has revoked and published      (package revoke)
//	3  the receipt is committed
//
// A node whose launch deadline has passed is terminated in the same way. docs/durability.md lists the states
// and what a crash leaves in each.
//
// # Names that are used again
//
// An authority that can only revoke by name (ca.Traits) must have revoked all earlier certificates of a name
// before it signs the next. Therefore an issue at such an authority waits for the name's pending revocations,
// and for its open intents, which may become revocations; see fence. The queue of revocations makes a second
// check: it refuses an order whose name has a newer certificate.
package registry

import (
	"cmp"
	"context"
	"crypto"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// Keys generates private keys.
type Keys interface {
	NewKey(ctx context.Context, alg ca.KeyAlgorithm) (crypto.Signer, error)
}

// Revocations is the queue of revocations; see revoke.Queue.
type Revocations interface {
	Order(c *store.Change, order node.Revocation) node.Revocation
	Kick()
	Retry(ctx context.Context, id string) (node.Revocation, error)
	Drop(ctx context.Context, id, comment string) (node.Revocation, error)
	Down() *node.Failure
	Wait(ctx context.Context, revs []node.Revocation) ([]node.Revocation, error)
}

// Options are a Registry's parts and settings. Required are all but Protected, Principals and the fields with
// a default. Only Import needs Signed.
type Options struct {
	Store       *store.Store
	Authority   ca.Authority
	Signed      Signed // the same authority
	Keys        Keys
	Revocations Revocations
	Puppet      bootstrap.Server
	Algorithm   ca.KeyAlgorithm // of a key, if the caller names no algorithm
	Protected   []string        // certnames that are never terminated, besides Puppet.Name and the authority's own
	Principals  Principals      // only an admin may get certificates that identify one of them
	Served      func() []string // names in espm's own certificate, reserved like Principals; default none
	TTL         time.Duration   // of a certificate, if the request names none; default ca.DefaultTTL
	Now         func() time.Time
	// Clock returns why Now can't be believed, an error that wraps node.ErrUnavailable. Meanwhile nothing is issued, no launch
	// deadline ends and nothing is forgotten. The default believes Now.
	Clock func() error
	Log   logrus.FieldLogger

	Sightings   *Sightings                             // default: one that counts for this Registry alone
	RunInterval time.Duration                          // the longest time between two runs of an agent; default half an hour
	Stage       func(stage string, took time.Duration) // is called after each stage of an issue that succeeded, with one of Stages; nil is allowed
	Uptime      func() time.Duration                   // monotonic: setting the clock does not change it; default Now's monotonic clock
}

const (
	settlePause    = 5 * time.Second // between tries while the authority or the store fails
	housekeepEvery = time.Minute
)

// Registry has espm's use cases. Each use case is a method of one part. A part holds the parts that it needs,
// and no part holds the Registry. The methods may be called concurrently. A change is durable when its method
// returns nil.
type Registry struct {
	*view          // Get, List, Certificates, WatchNodes and all other reads
	*registrations // Register, Update
	*issuer        // Provision, Issue, Wait
	*importer      // Import
	*terminations  // Terminate
	*revoker       // Revoke, RetryRevocation, DropRevocation
	*groups        // CreateGroup, UpdateGroup, DeleteGroup
	*certnames     // SetProtected, SetPrincipals, ReviewGrant

	settlement   *settlement
	launches     *launches
	housekeeping *housekeeping
	ended        chan struct{} // closed when Run has ended
}

// New returns a Registry. Run settles what an earlier process left open.
func New(o Options) *Registry {
	o.setDefaults()
	c := core{store: o.Store, now: o.Now, clock: o.Clock, log: o.Log}
	ended := make(chan struct{})
	groups := &groups{core: c}
	view := &view{core: c, sightings: o.Sightings, down: o.Revocations.Down, authority: o.Authority}
	names := &certnames{core: c, puppet: o.Puppet.Name, traits: o.Authority.Traits, served: o.Served, ttl: o.TTL}
	names.SetProtected(o.Protected)
	names.SetPrincipals(o.Principals)
	registrations := &registrations{core: c, view: view, names: names, commit: groups.commitNode}
	settlement := &settlement{core: c, authority: o.Authority, queue: o.Revocations, locked: map[node.UID]bool{}, logged: map[node.UID]string{}, soon: make(chan struct{}, 1)}
	fence := &fence{core: c, traits: o.Authority.Traits, queue: o.Revocations, settleSoon: settlement.settleSoon}
	orders := &orders{core: c, queue: o.Revocations}
	terminations := &terminations{core: c, view: view, names: names, orders: orders, queue: o.Revocations, settleSoon: settlement.settleSoon, ended: ended}
	return &Registry{
		view:          view,
		registrations: registrations,
		issuer: &issuer{
			core: c, authority: o.Authority, keys: o.Keys, puppet: o.Puppet, algorithm: o.Algorithm, stage: o.Stage,
			view: view, names: names, registrations: registrations, settlement: settlement, fence: fence, orders: orders,
			terminate: terminations.end, answers: answers{now: o.Now},
		},
		importer:     &importer{core: c, signed: o.Signed, names: names, unfinished: fence.unfinished, commit: groups.commitNode},
		terminations: terminations,
		revoker:      &revoker{core: c, view: view, names: names, orders: orders, queue: o.Revocations, authority: o.Authority},
		groups:       groups,
		certnames:    names,
		settlement:   settlement,
		launches: &launches{
			core: c, runInterval: o.RunInterval, uptime: o.Uptime, sightings: o.Sightings,
			protection: names.protection, terminate: terminations.end, kick: o.Revocations.Kick,
		},
		housekeeping: &housekeeping{core: c, groups: groups},
		ended:        ended,
	}
}

func (o *Options) setDefaults() {
	if o.Sightings == nil {
		o.Sightings = NewSightings(o.Store, SeenInStore(o.Store), o.Now, o.Log)
	}
	o.TTL = cmp.Or(o.TTL, ca.DefaultTTL)
	if o.Clock == nil {
		o.Clock = func() error { return nil }
	}
	if o.Served == nil {
		o.Served = func() []string { return nil }
	}
	if o.Stage == nil {
		o.Stage = func(string, time.Duration) {}
	}
	o.RunInterval = cmp.Or(o.RunInterval, defaultRunInterval)
	if o.Uptime == nil {
		began := o.Now()
		o.Uptime = func() time.Duration { return o.Now().Sub(began) }
	}
}

// Run works in the background until ctx is done: it settles the open intents that no call has locked, removes
// expired records, and checks launch deadlines. It must be called once only.
func (r *Registry) Run(ctx context.Context) {
	defer close(r.ended)
	ctx = node.AsSelf(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { r.launches.run(ctx) })
	tick := time.NewTicker(housekeepEvery)
	defer tick.Stop()
	for {
		again := r.settlement.settleAll(ctx)
		r.issuer.answers.prune()
		r.housekeeping.run(ctx)
		var retry <-chan time.Time
		if again {
			retry = time.After(settlePause)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-retry:
		case <-r.settlement.soon:
		}
	}
}
