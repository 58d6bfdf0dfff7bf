package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

const (
	settlePause    = 5 * time.Second // between tries while the authority or the store fails
	housekeepEvery = time.Minute
)

// Run settles the intents that are open and no call is at work on, those of
// an earlier process first, and forgets what is past its time, until ctx is
// done. Beside that it sees to launch deadlines. It is called once.
func (r *Registry) Run(ctx context.Context) {
	defer close(r.ended)
	ctx = node.AsSelf(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { r.runLaunches(ctx) })
	tick := time.NewTicker(housekeepEvery)
	defer tick.Stop()
	var lastSweep time.Time
	for {
		again := r.settleAll(ctx)
		r.answers.prune()
		if r.Now().Sub(lastSweep) >= time.Hour {
			lastSweep = r.Now()
			if err := errors.Join(r.sweep(ctx), r.groups.sweep(ctx)); err != nil && ctx.Err() == nil {
				r.Log.WithError(err).Error("forgetting old registrations and sets of groups")
			}
		}
		var retry <-chan time.Time
		if again {
			retry = time.After(settlePause)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-retry:
		case <-r.unsettle:
		}
	}
}

// settleAll settles what it can and says whether some is left.
func (r *Registry) settleAll(ctx context.Context) (left bool) {
	for intent, err := range r.Store.Intents(ctx) {
		if err == nil && !r.lockIntent(intent.UID) {
			left = true // a call is at work on it, and may fail to settle it
			continue
		}
		if err == nil {
			err = r.settleOpen(ctx, intent.UID) // it may have been closed since the list was read
			r.unlockIntent(intent.UID)
		}
		if ctx.Err() != nil {
			return false
		}
		if err != nil {
			r.unsettled(intent, err)
			left = true
		}
	}
	return left
}

// lockIntent locks an intent for one call, false where another call has locked it.
func (r *Registry) lockIntent(uid node.UID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.issuing[uid] {
		return false
	}
	r.issuing[uid] = true
	return true
}

func (r *Registry) unlockIntent(uid node.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.issuing, uid)
}

// settleNode settles the open intent of a node, whose caller came back. A
// *node.BusyError where Run is at it just now.
func (r *Registry) settleNode(ctx context.Context, n node.Node) error {
	if !r.lockIntent(n.UID) {
		return &node.BusyError{Reason: fmt.Sprintf("what became of the certificate of %q is being asked for", n.Certname), RetryAfter: retryAfter}
	}
	defer r.unlockIntent(n.UID)
	return r.settleOpen(ctx, n.UID)
}

// abandon settles an intent whose issue failed, now if that is possible. A
// certificate that the authority returned, but that is not the intent's, is
// revoked like one that it lost.
func (r *Registry) abandon(ctx context.Context, intent node.IssueIntent, cert *x509.Certificate) {
	err := r.refuse(ctx, intent, cert)
	if err == nil {
		err = r.settleOpen(ctx, intent.UID)
	}
	if err != nil {
		r.unsettled(intent, err)
		r.settleSoon()
	}
}

// unsettled logs why an intent stays open: an error, unless all that it needs is time.
func (r *Registry) unsettled(intent node.IssueIntent, err error) {
	level := logrus.ErrorLevel
	if _, busy := errors.AsType[*node.BusyError](err); busy {
		level = logrus.InfoLevel
	}
	r.Log.WithError(err).WithField("certname", intent.Certname).Log(level, "an unfinished issue can't be settled yet")
}

// settleSoon tells Run that an intent was left open.
func (r *Registry) settleSoon() {
	select {
	case r.unsettle <- struct{}{}:
	default:
	}
}

// refuse orders the revocation of a certificate that verify did not pass. The
// authority may not find it again: where it can't be ordered, the log has its serial.
func (r *Registry) refuse(ctx context.Context, intent node.IssueIntent, cert *x509.Certificate) error {
	if cert == nil || verify(cert, intent) == nil {
		return nil
	}
	serial := node.SerialOf(cert.SerialNumber)
	c := store.NewChange()
	owner, err := r.ownerOf(ctx, intent)
	if err == nil {
		rev := r.Revocations.Order(c, node.Revocation{Serial: serial, Certname: intent.Certname, UID: intent.UID, Owner: owner})
		c.Audit(audit.OfRevocation(ctx, r.Now(), node.ActionOrder, rev))
		_, err = r.Store.Commit(ctx, c)
	}
	if err != nil {
		return fmt.Errorf("serial %s, which the authority issued to nobody, has to be revoked by hand: %w", serial, err)
	}
	r.Revocations.Kick()
	return nil
}

// ownerOf returns the owner of a registration with an open intent: live, or
// terminated since. It does not change before the intent is closed.
func (r *Registry) ownerOf(ctx context.Context, intent node.IssueIntent) (string, error) {
	n, live, err := r.live(ctx, intent.Certname)
	if err != nil || live && n.UID == intent.UID {
		return n.Owner, err
	}
	gone, err := r.Store.Tombstone(ctx, intent.Certname, intent.UID)
	if errors.Is(err, node.ErrNodeNotFound) {
		return "", nil
	}
	return gone.Owner, err
}

// settleOpen settles the intent of a registration, if it is open. The caller has locked it.
func (r *Registry) settleOpen(ctx context.Context, uid node.UID) error {
	intent, open, err := r.Store.Intent(ctx, uid)
	if err != nil || !open {
		return err
	}
	return r.settle(ctx, intent)
}

// settle brings an open intent to its end: it asks the authority what became
// of it, and adopts the certificate or orders its revocation.
func (r *Registry) settle(ctx context.Context, intent node.IssueIntent) error {
	found, err := r.Authority.Find(ctx, ca.Query{Certname: intent.Certname, Serial: intent.Serial, KeyHash: intent.KeyHash, Since: intent.CreatedAt})
	if err != nil {
		return fmt.Errorf("asking the authority about %q: %w", intent.Certname, err)
	}
	log := r.Log.WithFields(logrus.Fields{"certname": intent.Certname, "uid": intent.UID, "serial": found.Serial})
	err = retry(func() error {
		open, ok, err := r.Store.Intent(ctx, intent.UID)
		if err != nil || !ok {
			return err
		}
		n, err := r.Store.Node(ctx, intent.Certname)
		alive := err == nil && n.UID == intent.UID
		if err != nil && !errors.Is(err, node.ErrNodeNotFound) {
			return err
		}
		c := store.NewChange()
		c.RemoveIntent(open)
		line := r.line(ctx, node.ActionSettle, node.Node{Certname: intent.Certname, UID: intent.UID, Serial: found.Serial})
		line.RequestID = node.RequestIDOf(intent.RequestID)
		adopt := alive && intent.CallerKey && found.Certificate != nil && verify(found.Certificate, intent) == nil
		if adopt {
			adopted, err := n.Hold(found.Serial, r.Now())
			if err != nil {
				return err
			}
			c.PutNode(&n, adopted)
			c.PutCertificate(record(intent, n.Owner, found.Certificate))
			line.Comment = "the certificate is adopted"
		} else if line.Comment, err = r.undo(ctx, c, intent, n, alive, found); err != nil {
			return err
		}
		c.Audit(line)
		if _, err := r.Store.Commit(ctx, c); err != nil {
			return err
		}
		log.WithFields(logrus.Fields{"issued": found.Issued, "adopted": adopt}).Info("unfinished issue settled")
		return nil
	})
	r.Revocations.Kick()
	return err
}

// undo takes back what an intent began: a certificate is revoked, a
// registration that came with it goes, one that was there before stays. It
// returns what that is in words.
func (r *Registry) undo(ctx context.Context, c *store.Change, intent node.IssueIntent, n node.Node, alive bool, found ca.Found) (string, error) {
	what := "no certificate was issued"
	if found.Issued {
		gone, err := r.Store.Tombstone(ctx, intent.Certname, intent.UID) // terminated while it was issued
		if err != nil && !errors.Is(err, node.ErrNodeNotFound) {
			return "", err
		}
		owner := gone.Owner
		if alive {
			owner = n.Owner
		}
		rev := r.Revocations.Order(c, node.Revocation{Serial: found.Serial, Certname: intent.Certname, UID: intent.UID, Owner: owner, Reason: gone.RevokedFor})
		what = "the certificate is to be revoked: revocation/" + rev.ID
		if found.Certificate != nil {
			cert := record(intent, owner, found.Certificate)
			cert.Revocation = rev.ID
			c.PutCertificate(cert)
		}
	}
	switch {
	case !alive:
	case !intent.NewNode:
		back, err := n.CancelIssue(r.Now())
		if err != nil {
			return "", err
		}
		if intent.NewRequest {
			c.RemoveRequest(intent.RequestID)
			back.Requests = slices.DeleteFunc(back.Requests, func(key string) bool { return key == intent.RequestID })
		}
		c.PutNode(&n, back)
	default:
		what += "; the node is gone"
		c.RemoveNode(n)
		for _, key := range n.Requests {
			c.RemoveRequest(key)
		}
		if found.Issued { // so that its revocation is found, and forgotten in time
			gone, err := n.Terminate("", "", r.Now())
			if err != nil {
				return "", err
			}
			gone.Requests = nil // they are free again, and may be another's by then
			c.PutTombstone(gone)
		}
	}
	return what, nil
}
