package directory

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// SignedNames returns the names that have a file in signed/, in order.
func (a *Authority) SignedNames(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	entries, err := os.ReadDir(a.file("signed"))
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", unavailable(err))
	}
	var names []string
	for _, e := range entries {
		// A file that is being written has a name that starts with a dot.
		if name, ok := strings.CutSuffix(e.Name(), ".pem"); ok && !strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	return names, nil
}

// Existing reads signed/NAME.pem of each name, in order. A file that can't be read is a Problem of its name. From the inventory it adds the name's other certificates in force.
func (a *Authority) Existing(ctx context.Context, names []node.Certname) ([]ca.Existing, error) {
	out := make([]ca.Existing, len(names))
	for i, name := range names {
		existing, err := a.existing(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("certificate of %s: %w", name, err)
		}
		out[i] = existing
	}
	return out, nil
}

func (a *Authority) existing(ctx context.Context, name node.Certname) (ca.Existing, error) {
	if _, err := node.ParseCertname(string(name)); err != nil {
		return ca.Existing{}, err // the name becomes a path
	}
	if err := ctx.Err(); err != nil {
		return ca.Existing{}, err
	}
	cert, err := a.readCertificate(name)
	if err != nil { // only this file's
		return ca.Existing{Problem: fmt.Errorf("it can't be read: %w", err)}, nil
	}
	if cert == nil {
		return ca.Existing{}, nil
	}
	if cert.X509 == nil {
		return ca.Existing{Problem: fmt.Errorf("it can't be read, but revoked by its serial %s: %w", node.SerialOf(cert.SerialNumber), cert.Unreadable)}, nil
	}
	h := ca.Existing{Certificate: cert.X509, Problem: ca.CheckExisting(cert.X509, name, a.issuer, a.opts.Now())}
	if h.Problem == nil && a.revoked(node.SerialOf(h.Certificate.SerialNumber)) {
		h.Problem = ca.ErrExistingRevoked
	}
	if h.Problem == nil {
		h.Others, err = a.others(name, node.SerialOf(h.Certificate.SerialNumber))
	}
	return h, unavailable(err)
}
