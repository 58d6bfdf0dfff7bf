package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// settlement settles open intents that no call works on.
type settlement struct {
	core
	authority interface {
		Find(ctx context.Context, q ca.Query) (ca.Found, error)
	}
	queue interface {
		Order(c *store.Change, order node.Revocation) node.Revocation
		Kick()
	}

	mu     sync.Mutex
	locked map[node.UID]bool   // registrations whose intent is locked
	logged map[node.UID]string // why an intent can't be settled, as the log has it
	soon   chan struct{}       // capacity 1: wakes Run, as an intent was left open
}

// settleAll settles the intents that it can, and reports whether some are left.
func (s *settlement) settleAll(ctx context.Context) (left bool) {
	open := make(map[node.UID]bool)
	for intent, err := range s.store.Intents(ctx) {
		if err == nil && !s.lockIntent(intent.UID) {
			left, open[intent.UID] = true, true // a call has locked it, and may leave it open
			continue
		}
		if err == nil {
			err = s.settleOpen(ctx, intent.UID) // reads the intent again: it may have been closed meanwhile
			s.unlockIntent(intent.UID)
		}
		if ctx.Err() != nil {
			return false
		}
		if err != nil {
			s.unsettled(intent, err)
			left, open[intent.UID] = true, true
		}
	}
	s.forgetLogged(open)
	return left
}

// lockIntent locks an intent for one call. It returns false if another call has locked it.
func (s *settlement) lockIntent(uid node.UID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locked[uid] {
		return false
	}
	s.locked[uid] = true
	return true
}

func (s *settlement) unlockIntent(uid node.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.locked, uid)
}

// forgetLogged forgets what is in the log about intents that are settled now.
func (s *settlement) forgetLogged(open map[node.UID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.logged, func(uid node.UID, _ string) bool { return !open[uid] })
}

// settleNode settles the open intent of a node whose caller repeats the call. It returns a *node.BusyError if
// Run has locked the intent.
func (s *settlement) settleNode(ctx context.Context, n node.Node) error {
	if !s.lockIntent(n.UID) {
		return &node.BusyError{Reason: fmt.Sprintf("espm is asking the CA whether it signed a certificate for %q", n.Certname), RetryAfter: retryAfter}
	}
	defer s.unlockIntent(n.UID)
	return s.settleOpen(ctx, n.UID)
}

// abandon settles an intent whose issue failed, or leaves that to Run. If the authority returned a certificate
// that does not match the intent, abandon orders its revocation. It does not ask an authority that has said that it
// issued none: the reason for that may be a reason for no answer.
func (s *settlement) abandon(ctx context.Context, intent node.IssueIntent, cert *x509.Certificate, why error) {
	err := s.refuse(ctx, intent, cert)
	switch {
	case err != nil:
	case errors.Is(why, ca.ErrNotIssued):
		err = s.close(ctx, intent, ca.Found{})
	default:
		err = s.settleOpen(ctx, intent.UID)
	}
	if err != nil {
		s.unsettled(intent, err)
		s.settleSoon()
	}
}

// unsettled logs why an intent stays open, but not the same reason twice in a row. The level is error, or info if the
// authority is only busy.
func (s *settlement) unsettled(intent node.IssueIntent, err error) {
	level, why := logrus.ErrorLevel, err.Error()
	if _, busy := errors.AsType[*node.BusyError](err); busy {
		level, why = logrus.InfoLevel, "busy" // its text has the wait, which differs each time
	}
	s.mu.Lock()
	known := s.logged[intent.UID] == why
	s.logged[intent.UID] = why
	s.mu.Unlock()
	if known {
		return
	}
	s.log.WithError(err).WithField("certname", intent.Certname).Log(level, "an unfinished issue can't be settled yet")
}

// settleSoon wakes Run to settle an open intent.
func (s *settlement) settleSoon() {
	select {
	case s.soon <- struct{}{}:
	default:
	}
}

// refuse orders the revocation of a certificate that does not match its intent. The authority may not find such
// a certificate again. So if the order fails, the log must have the serial.
func (s *settlement) refuse(ctx context.Context, intent node.IssueIntent, cert *x509.Certificate) error {
	if cert == nil || verify(cert, intent) == nil {
		return nil
	}
	serial := node.SerialOf(cert.SerialNumber)
	c := store.NewChange()
	owner, err := s.ownerOf(ctx, intent)
	if err == nil {
		rev := s.queue.Order(c, node.Revocation{Serial: serial, Certname: intent.Certname, UID: intent.UID, Owner: owner})
		c.Audit(audit.OfRevocation(ctx, s.now(), node.ActionOrder, rev))
		_, err = s.store.Commit(ctx, c)
	}
	if err != nil {
		return fmt.Errorf("serial %s does not match its request and could not be ordered for revocation; revoke it by hand: %w", serial, err)
	}
	s.queue.Kick()
	return nil
}

// ownerOf returns the owner of a registration with an open intent, live or terminated. The owner can't change
// before the intent is closed.
func (s *settlement) ownerOf(ctx context.Context, intent node.IssueIntent) (string, error) {
	n, live, err := s.live(ctx, intent.Certname)
	if err != nil || live && n.UID == intent.UID {
		return n.Owner, err
	}
	gone, err := s.store.Tombstone(ctx, intent.Certname, intent.UID)
	if errors.Is(err, node.ErrNodeNotFound) {
		return "", nil
	}
	return gone.Owner, err
}

// settleOpen settles the intent of a registration, if it is open. The caller has locked it.
func (s *settlement) settleOpen(ctx context.Context, uid node.UID) error {
	intent, open, err := s.store.Intent(ctx, uid)
	if err != nil || !open {
		return err
	}
	return s.settle(ctx, intent)
}

// settle closes an open intent: it asks the authority for the certificate, and adopts it or orders its
// revocation.
func (s *settlement) settle(ctx context.Context, intent node.IssueIntent) error {
	found, err := s.authority.Find(ctx, ca.Query{Certname: intent.Certname, Serial: intent.Serial, KeyHash: intent.KeyHash, Since: intent.CreatedAt})
	if err != nil {
		return fmt.Errorf("ask the authority for the certificate of %q: %w", intent.Certname, err)
	}
	return s.close(ctx, intent, found)
}

// close closes an intent, given what the authority has of it.
func (s *settlement) close(ctx context.Context, intent node.IssueIntent, found ca.Found) error {
	log := s.log.WithFields(logrus.Fields{"certname": intent.Certname, "uid": intent.UID, "serial": found.Serial})
	err := retry(func() error {
		open, ok, err := s.store.Intent(ctx, intent.UID)
		if err != nil || !ok {
			return err
		}
		n, err := s.store.Node(ctx, intent.Certname)
		alive := err == nil && n.UID == intent.UID
		if err != nil && !errors.Is(err, node.ErrNodeNotFound) {
			return err
		}
		c := store.NewChange()
		c.RemoveIntent(open)
		line := s.line(ctx, node.ActionSettle, node.Node{Certname: intent.Certname, UID: intent.UID})
		line.Serial = found.Serial
		line.RequestID = node.RequestIDOf(intent.RequestID)
		adopt := alive && intent.CallerKey && found.Certificate != nil && verify(found.Certificate, intent) == nil
		if adopt {
			adopted, err := n.Hold(found.Serial, s.now())
			if err != nil {
				return err
			}
			c.PutNode(&n, adopted)
			c.PutCertificate(record(intent, n.Owner, found.Certificate))
			line.Comment = "the certificate is adopted"
		} else if line.Comment, err = s.undo(ctx, c, intent, n, alive, found); err != nil {
			return err
		}
		c.Audit(line)
		if _, err := s.store.Commit(ctx, c); err != nil {
			return err
		}
		log.WithFields(logrus.Fields{"issued": found.Issued, "adopted": adopt}).Info("unfinished issue settled")
		return nil
	})
	s.queue.Kick()
	return err
}

// undo adds to a change what reverts an intent: the order to revoke its certificate, and the removal of the
// registration if it was committed with the intent. An older registration stays. undo returns a description.
func (s *settlement) undo(ctx context.Context, c *store.Change, intent node.IssueIntent, n node.Node, alive bool, found ca.Found) (string, error) {
	what := "no certificate was issued"
	if found.Issued {
		gone, err := s.store.Tombstone(ctx, intent.Certname, intent.UID) // there if the node was terminated during the issue
		if err != nil && !errors.Is(err, node.ErrNodeNotFound) {
			return "", err
		}
		owner := gone.Owner
		if alive {
			owner = n.Owner
		}
		rev := s.queue.Order(c, node.Revocation{Serial: found.Serial, Certname: intent.Certname, UID: intent.UID, Owner: owner, Reason: gone.RevokedFor})
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
		back, err := n.CancelIssue(s.now())
		if err != nil {
			return "", err
		}
		if intent.NewRequest {
			c.RemoveRequest(intent.RequestID)
			back.Requests = slices.DeleteFunc(back.Requests, func(key string) bool { return key == intent.RequestID })
		}
		c.PutNode(&n, back)
	default:
		what += "; the node is removed"
		c.RemoveNode(n)
		for _, key := range n.Requests {
			c.RemoveRequest(key)
		}
		if found.Issued { // housekeeping finds the revocation, and later removes it, by the tombstone
			gone, err := n.Terminate("", "", s.now())
			if err != nil {
				return "", err
			}
			gone.Requests = nil // the request ids are free again, and another registration may use them
			c.PutTombstone(gone)
		}
	}
	return what, nil
}
