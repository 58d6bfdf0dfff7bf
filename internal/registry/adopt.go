package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/store"
)

// candidate is a certificate that may be adopted, with its outcome.
type candidate struct {
	Imported
	notBefore time.Time
	pem       string // empty if the authority has no copy
	past      bool   // espm has a record of it, and no live registration has it
}

// importName adopts the authority's certificates of one name. It sets the outcome of the newest in in, and
// returns the outcomes of the others.
func (im *importer) importName(ctx context.Context, in *Imported, held ca.Existing, s ImportSpec) ([]Imported, error) {
	if held.Certificate != nil {
		in.Serial, in.NotAfter = node.SerialOf(held.Certificate.SerialNumber), held.Certificate.NotAfter
	}
	switch {
	case held.Problem != nil:
		in.skip("%v", held.Problem)
		return nil, nil
	case held.Certificate == nil && len(s.Certnames) > 0:
		in.Outcome, in.Reason = NotFound, "the CA has no certificate of that name"
		return nil, nil
	case held.Certificate == nil:
		in.skip("the CA removed it after the import began")
		return nil, nil
	}
	all := candidates(*in, held)
	if err := retry(func() error { return im.adopt(ctx, node.Certname(in.Certname), all, s) }); err != nil {
		return nil, fmt.Errorf("import %q: %w", in.Certname, err)
	}
	if hash := pemfile.WeakHash(held.Certificate.Raw); hash != "" && all[0].Outcome != Skipped {
		all[0].Reason = weakSignature(hash)
	}
	*in = all[0].Imported
	var others []Imported
	for i, c := range all {
		if c.Outcome == Adopted {
			im.log.WithFields(logrus.Fields{"certname": c.Certname, "uid": c.UID, "serial": c.Serial}).Info("certificate imported")
		}
		if i > 0 && !c.past {
			others = append(others, c.Imported)
		}
	}
	return others, nil
}

// weakSignature is the warning for a certificate that the CA signed with a hash that is broken. Such a
// certificate is imported and revoked like any other.
func weakSignature(hash string) string {
	return fmt.Sprintf("warning: it is signed with %s, which many clients refuse; issue a new certificate", hash)
}

// candidates returns the authority's certificates of a name, the newest first.
func candidates(in Imported, held ca.Existing) []*candidate {
	all := []*candidate{{in, held.Certificate.NotBefore, string(encodeCertificate(held.Certificate)), false}}
	for _, o := range held.Others {
		all = append(all, &candidate{Imported{Certname: in.Certname, Serial: o.Serial, NotAfter: o.NotAfter}, o.NotBefore, "", false})
	}
	return all
}

// adopt commits certificates of a name and their registration. It skips certificates that known or unblocked
// refuse.
func (im *importer) adopt(ctx context.Context, name node.Certname, all []*candidate, s ImportSpec) error {
	n, isLive, err := im.live(ctx, name)
	if err != nil {
		return err
	}
	var live *node.Node
	if isLive {
		live = &n
	}
	var fresh []*candidate
	for _, c := range all {
		c.Outcome, c.Reason, c.UID, c.past, c.Before, c.After = "", "", "", false, nil, nil
		if err := im.known(ctx, c, live); err != nil {
			return err
		}
		if c.Outcome == "" {
			fresh = append(fresh, c)
		}
	}
	// If a registration of the name is committed after this check, the guards of the commit below fail.
	if fresh, err = im.unblocked(ctx, name, fresh, live); err != nil || len(fresh) == 0 {
		return err
	}
	if !isLive {
		n = im.newNode(ctx, node.Node{Certname: name, Groups: s.Groups, Labels: s.Labels})
	}
	if lost, err := im.classifications(ctx, fresh, n, isLive); err != nil || lost != "" && !s.LoseClassification {
		for _, c := range fresh {
			c.skip("another ENC, %s, classifies it and would not be asked any more: register it with its classification first, or import it with lose_classification", lost)
		}
		return err
	}
	n, err = im.commitAdopted(ctx, live, n, fresh, s.ValidateOnly)
	if err != nil {
		return err
	}
	for _, c := range fresh {
		if c.Outcome = WouldAdopt; !s.ValidateOnly {
			c.Outcome, c.UID = Adopted, n.UID
		}
	}
	return nil
}

// classifications notes what the ENC answers for a name without the import and with it. It returns the other ENC whose
// classification the import would lose, "" if there is none.
func (im *importer) classifications(ctx context.Context, fresh []*candidate, n node.Node, isLive bool) (lost string, err error) {
	merged, err := enc.Merge(ctx, im.store, n)
	if err != nil {
		return "", err
	}
	after := &ENCAnswer{YAML: string(enc.Render(merged.Redacted()))}
	before := after
	if !isLive {
		settings, err := im.store.ENC(ctx)
		if err != nil && !errors.Is(err, store.ErrNoKey) { // before a daemon has stored them, the ENC knows no other
			return "", fmt.Errorf("reading the ENC's settings: %w", err)
		}
		switch before = new(ENCAnswer); settings.UnknownNodes {
		case enc.Blank:
			before.YAML = enc.Empty
		case enc.Command:
			before.Command = settings.Command
		}
	}
	for _, c := range fresh {
		c.Before, c.After = before, after
	}
	return before.Command, nil
}

// commitAdopted commits a registration with the adopted certificates.
func (im *importer) commitAdopted(ctx context.Context, live *node.Node, n node.Node, fresh []*candidate, validateOnly bool) (node.Node, error) {
	var certs []node.Certificate
	c := store.NewChange()
	for _, f := range fresh {
		adopted := node.Certificate{
			Serial:     f.Serial,
			Certname:   n.Certname,
			UID:        n.UID,
			Owner:      n.Owner,
			NotBefore:  f.notBefore,
			NotAfter:   f.NotAfter,
			PEM:        f.pem,
			ImportedAt: im.now().UTC(),
		}
		certs = append(certs, adopted)
		c.PutCertificate(adopted)
		line := im.line(ctx, node.ActionImport, n)
		line.Serial = f.Serial
		c.Audit(line)
	}
	for _, serial := range n.Serials {
		cert, err := im.store.Certificate(ctx, serial)
		if err != nil {
			return n, err
		}
		certs = append(certs, cert)
	}
	n, err := n.Adopt(certs, im.now())
	if err != nil {
		return n, err
	}
	return n, im.commit(ctx, c, live, &n, validateOnly)
}

// known sets the outcome of a certificate that espm has a record of.
func (im *importer) known(ctx context.Context, c *candidate, live *node.Node) error {
	have, err := im.store.Certificate(ctx, c.Serial)
	if errors.Is(err, node.ErrCertificateNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	c.past = true
	switch {
	case string(have.Certname) != c.Certname || c.pem != "" && have.PEM != "" && c.pem != have.PEM:
		c.skip("espm has a record of another certificate with its serial number")
	case live != nil && live.UID == have.UID && live.Holds(c.Serial):
		c.Outcome, c.UID, c.past = Already, live.UID, false
	case have.Receipt != nil:
		c.skip("espm has revoked it")
	case have.Impossible:
		c.skip("its revocation was ordered, and the CA can't carry it out")
	case have.Revocation != "":
		c.skip("its revocation is ordered")
	default:
		c.skip("registration %s had it, and its revocation was dropped; it can be revoked by its serial", have.UID)
	}
	return nil
}

// unblocked skips certificates of a name with an unfinished issue or a revocation, and returns the rest.
func (im *importer) unblocked(ctx context.Context, name node.Certname, fresh []*candidate, live *node.Node) ([]*candidate, error) {
	if len(fresh) == 0 {
		return nil, nil
	}
	// The revocations are read last: an unfinished issue may become a revocation, never the reverse.
	_, open, err := im.unfinished(ctx, name, "")
	if err != nil {
		return nil, err
	}
	revs, err := im.store.AllRevocationsOf(ctx, name)
	if err != nil {
		return nil, err
	}
	var left []*candidate
	for _, c := range fresh {
		switch {
		case live != nil && live.State == node.Issuing:
			c.skip("a certificate is being issued for the node")
		case len(open) > 0:
			c.skip("an earlier registration of the name has an unfinished issue")
		case slices.ContainsFunc(revs, node.Revocation.Open):
			c.skip("an earlier registration of the name has a revocation pending")
		case slices.ContainsFunc(revs, func(v node.Revocation) bool { return v.Serial == c.Serial && v.Drop == nil }):
			c.skip("espm has revoked it")
		default:
			left = append(left, c)
		}
	}
	return left, nil
}
