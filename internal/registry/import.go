package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

const (
	// importBatch is how many certificates are looked at and committed at once:
	// enough to share the wait for the disk, few enough to see that it goes on.
	importBatch = 200
	// maxImportNames bounds the names of one request, not what the CA has.
	maxImportNames = 10_000
)

// Signed tells what an authority has signed, whoever asked it to. Errors
// wrap node.ErrUnavailable where it can't tell now.
type Signed interface {
	// SignedNames returns the names that have a certificate, in order, as the
	// authority spells them: they may break espm's rules.
	SignedNames(ctx context.Context) ([]string, error)
	// Existing returns the certificate under each name, in order.
	Existing(ctx context.Context, names []node.Certname) ([]ca.Existing, error)
}

// ImportSpec says what to adopt, and as what.
type ImportSpec struct {
	Certnames    []string          // empty: all that the authority has
	Groups       []string          // of registrations that the import makes
	Labels       map[string]string // likewise
	ValidateOnly bool
}

// Outcome is what became of one certificate in an import.
type Outcome string

// The outcomes.
const (
	Adopted    Outcome = "imported"
	WouldAdopt Outcome = "would_import" // with ValidateOnly
	Already    Outcome = "already"      // espm holds it, as that name's live certificate
	Skipped    Outcome = "skipped"      // for a reason
	NotFound   Outcome = "not_found"    // asked for by name, and the authority has none
)

// Imported is one certificate of an import.
type Imported struct {
	Certname string      // as the authority spells it
	Serial   node.Serial // "" where there is no certificate, or none that was looked at
	UID      node.UID    // of the registration that holds it
	NotAfter time.Time
	Outcome  Outcome
	Reason   string // why it was skipped
}

func (i *Imported) skip(format string, args ...any) {
	i.Outcome, i.Reason = Skipped, printable(fmt.Sprintf(format, args...))
}

// importer adopts certificates that others had the authority sign.
type importer struct {
	core
	signed     Signed
	names      *certnames
	unfinished func(ctx context.Context, name node.Certname, but node.UID) ([]node.Revocation, []node.UID, error)
	commit     commitNode
}

// Import adopts certificates that the authority has signed already: each
// becomes a certificate of a new registration, or of the live one of its name, beside those
// that it holds. Nothing is asked of the authority but what it has, and nothing is
// revoked. What is not in force, or protected, is skipped.
//
// The certificates of a name are one commit, so an import that is cut short is
// called again; what was adopted is Already then. report gets what is done, a
// batch at a time, each durable, and how many names there are in all; an error of
// its ends the import. Only an admin may: who adopts a certificate can have it
// revoked, and it is none of those that espm issued to him. Errors are node.ErrNotPermitted,
// ErrInvalid, ErrGroupNotFound, ErrConflict, with nothing done, and node.ErrUnavailable.
func (im *importer) Import(ctx context.Context, s ImportSpec, report func(done []Imported, total int) error) error {
	if err := accessOf(ctx).admin("", "import certificates"); err != nil {
		return err
	}
	names, err := im.importNames(ctx, s)
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(names, importBatch) {
		done, err := im.importBatch(ctx, batch, s)
		if len(done) > 0 {
			err = errors.Join(report(done, len(names)), err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// importNames checks the request and returns the names to import.
func (im *importer) importNames(ctx context.Context, s ImportSpec) ([]string, error) {
	var bad []error
	if len(s.Certnames) > maxImportNames {
		bad = append(bad, node.Invalid("certnames", "at most %d, are %d; none means all", maxImportNames, len(s.Certnames)))
	}
	for i, name := range s.Certnames[:min(len(s.Certnames), maxImportNames)] {
		if _, err := node.ParseCertname(name); err != nil {
			bad = append(bad, node.Invalid(fmt.Sprintf("certnames[%d]", i), "%s", rule(err)))
		}
	}
	// Any valid name: all that the import registers is alike.
	like := node.Node{Certname: "import", Groups: s.Groups, Labels: s.Labels}
	if err := node.Join(append(bad, like.Validate())...); err != nil {
		return nil, err
	}
	if _, err := checkNode(ctx, im.store, like); err != nil {
		if conflict, ok := errors.AsType[*node.ConflictError](err); ok {
			conflict.Nodes = nil // there is no node of that name
		}
		return nil, err
	}
	if len(s.Certnames) == 0 {
		return im.signed.SignedNames(ctx)
	}
	return slices.Compact(slices.Sorted(slices.Values(s.Certnames))), nil
}

// rule returns the rule that a name breaks, without the field's name.
func rule(err error) string {
	if invalid, ok := errors.AsType[*node.InvalidError](err); ok {
		return invalid.Violations[0].Rule
	}
	return err.Error()
}

// importBatch imports some names and returns what is done with them, also beside an error.
func (im *importer) importBatch(ctx context.Context, names []string, s ImportSpec) ([]Imported, error) {
	all := make([]Imported, len(names))
	var ask []node.Certname
	var at []*Imported
	for i, name := range names {
		in := &all[i]
		in.Certname = printable(name)
		if certname, err := node.ParseCertname(name); err != nil {
			in.skip("the name breaks a rule: %s", rule(err))
		} else if why := im.names.protection(certname); why != "" {
			in.skip("%s", why)
		} else {
			ask, at = append(ask, certname), append(at, in)
		}
	}
	if len(ask) == 0 {
		return all, nil
	}
	held, err := im.signed.Existing(ctx, ask)
	if err != nil {
		return nil, fmt.Errorf("asking the authority for its certificates: %w", err)
	}
	errs := make([]error, len(ask))
	others := make([][]Imported, len(ask))
	var wg sync.WaitGroup
	for i := range ask { // at once, so that their commits go together
		wg.Go(func() { others[i], errs[i] = im.importName(ctx, at[i], held[i], s) })
	}
	wg.Wait()
	all = slices.DeleteFunc(append(all, slices.Concat(others...)...), func(in Imported) bool { return in.Outcome == "" })
	slices.SortStableFunc(all, func(a, b Imported) int { return strings.Compare(a.Certname, b.Certname) })
	for _, err := range errs {
		if err != nil { // one says enough: a disk that is full is so for all
			return all, err
		}
	}
	return all, nil
}

// printable keeps what others chose, such as a file's name, from spoiling a message or a terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c == unicode.ReplacementChar || !unicode.IsPrint(c) {
			return '?'
		}
		return c
	}, s)
}
