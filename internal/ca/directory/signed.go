package directory

import (
	"context"
	"errors"
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

// Held reads what stands in signed/ under each name, in order, and what else of the name the inventory has in force.
func (a *Authority) Held(ctx context.Context, names []node.Certname) ([]ca.Held, error) {
	out := make([]ca.Held, len(names))
	for i, name := range names {
		held, err := a.held(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("certificate of %s: %w", name, err)
		}
		out[i] = held
	}
	return out, nil
}

func (a *Authority) held(ctx context.Context, name node.Certname) (ca.Held, error) {
	if _, err := node.ParseCertname(string(name)); err != nil {
		return ca.Held{}, err // it becomes a path
	}
	if err := ctx.Err(); err != nil {
		return ca.Held{}, err
	}
	cert, err := a.standing(name)
	if errors.Is(err, node.ErrForeignCertificate) {
		return ca.Held{Problem: fmt.Errorf("it can't be read: %w", err)}, nil
	}
	if err != nil || cert == nil {
		return ca.Held{}, unavailable(err)
	}
	if cert.X509 == nil {
		return ca.Held{Problem: fmt.Errorf("it can't be read: %w", cert.Unreadable)}, nil
	}
	h := ca.Held{Certificate: cert.X509, Problem: ca.CheckHeld(cert.X509, name, a.issuer, a.opts.Now())}
	if h.Problem == nil && a.revoked(node.SerialOf(h.Certificate.SerialNumber)) {
		h.Problem = ca.ErrHeldRevoked
	}
	if h.Problem == nil {
		h.Others, err = a.others(name, node.SerialOf(h.Certificate.SerialNumber))
	}
	return h, unavailable(err)
}
