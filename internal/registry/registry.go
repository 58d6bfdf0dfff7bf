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
// An intent that is found at start, or that could not be brought to its end,
// is settled: the authority is asked what became of it. Where the caller holds the
// private key (it sent a CSR) the certificate is adopted. Else the key is lost, so
// the certificate is revoked, and a registration that came with the intent
// goes with it. A crash between 3 and 4 leaves a provisioned node whose caller has no
// answer: a retry with the same request id revokes that certificate and issues another.
//
// # Importing
//
// A certificate that the authority signed for others is adopted in one commit,
// with its registration; see Import. Nothing is revoked, so there is nothing to settle.
// Once adopted it is a certificate like any other: a terminate revokes it.
//
// # Terminating
//
//	1  one commit: the node is out, its tombstone and the order to revoke are in
//	2  the authority has revoked and published      (package revoke)
//	3  the receipt is committed
//
// A node whose launch deadline passed is terminated in the same way; see
// docs/durability.md for the states and crashes.
//
// # Names that live again
//
// An authority that can only revoke by name (ca.Traits) must be done with
// all earlier certificates of a name before it signs the next. So such an issue waits for
// the name's pending revocations and for its open intents, which may yet become
// revocations: see fence. The queue checks it once more: it refuses to revoke, by the name, a
// certificate whose name has a newer one.
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

// Keys makes private keys.
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

// Options are a Registry's parts and settings. All but Protected, and what has
// a default, are required; Signed for Import alone.
type Options struct {
	Store       *store.Store
	Authority   ca.Authority
	Signed      Signed // the same authority
	Keys        Keys
	Revocations Revocations
	Puppet      bootstrap.Server
	Algorithm   ca.KeyAlgorithm // of a key, where the caller names none
	Protected   []string        // certnames that are never terminated, besides Puppet.Name and the authority's own
	Principals  []string        // certnames that callers are known by: only an admin has certificates of them issued
	Served      func() []string // names that espm's own certificate is good for, likewise; the default has none
	TTL         time.Duration   // of a certificate whose request names none; default ca.DefaultTTL
	Now         func() time.Time
	// Clock returns why Now can't be believed, an error that wraps node.ErrUnavailable. Meanwhile nothing is issued, no launch
	// deadline ends and nothing is forgotten. The default believes Now.
	Clock func() error
	Log   logrus.FieldLogger

	Sightings   *Sightings                             // the default knows what is stored
	RunInterval time.Duration                          // between two runs of an agent, at most; default half an hour
	Stage       func(stage string, took time.Duration) // is called after each stage of an issue that succeeded, with one of Stages; nil is allowed
	Uptime      func() time.Duration                   // does not go back or jump as a clock may; the default is Now's monotonic clock
}

const (
	settlePause    = 5 * time.Second // between tries while the authority or the store fails
	housekeepEvery = time.Minute
)

// Registry is espm's use cases, each in the part that has it. A part has what it needs of the
// others, and no part has the Registry. Its methods may be called at once. What a
// method has changed is durable when it returns nil.
type Registry struct {
	*view          // Get, List, Certificates, WatchNodes and what else callers read
	*registrations // Register, Update
	*issuer        // Provision, Issue, Wait
	*importer      // Import
	*terminations  // Terminate
	*revoker       // Revoke, RetryRevocation, DropRevocation
	*groups        // CreateGroup, UpdateGroup, DeleteGroup
	*certnames     // SetProtected

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
	names := &certnames{core: c, puppet: o.Puppet.Name, traits: o.Authority.Traits, principals: o.Principals, served: o.Served, ttl: o.TTL}
	names.SetProtected(o.Protected)
	registrations := &registrations{core: c, view: view, names: names, commit: groups.commitNode}
	settlement := &settlement{core: c, authority: o.Authority, queue: o.Revocations, busy: map[node.UID]bool{}, soon: make(chan struct{}, 1)}
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

// Run settles the intents that are open and no call is at work on, those of
// an earlier process first, and forgets what is past its time, until ctx is
// done. Beside that it sees to launch deadlines. It is called once.
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
