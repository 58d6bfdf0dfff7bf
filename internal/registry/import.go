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
	// importBatch is how many names are read and committed in parallel: enough to share the wait for the disk,
	// few enough to show progress.
	importBatch = 200
	// maxImportNames bounds the names in one request. An import of all the CA's certificates has no bound.
	maxImportNames = 10_000
)

// Signed lists the certificates that an authority has signed, with espm or without. Errors wrap
// node.ErrUnavailable if the authority does not answer.
type Signed interface {
	// SignedNames returns the names that have a certificate, sorted, in the authority's spelling. They may break
	// espm's rules.
	SignedNames(ctx context.Context) ([]string, error)
	// Existing returns the certificates of each name, in the order of names.
	Existing(ctx context.Context, names []node.Certname) ([]ca.Existing, error)
}

// ImportSpec says which certificates to adopt, and how to register their nodes.
type ImportSpec struct {
	Certnames    []string          // if empty, all names that the authority has
	Groups       []string          // of new registrations
	Labels       map[string]string // of new registrations
	ValidateOnly bool

	// LoseClassification also imports names that another ENC classifies and that have no registration. From
	// then on espm answers for them, and that ENC is not asked any more.
	LoseClassification bool
}

// Outcome is the outcome of one certificate in an import.
type Outcome string

// The outcomes.
const (
	Adopted    Outcome = "imported"
	WouldAdopt Outcome = "would_import" // with ValidateOnly
	Already    Outcome = "already"      // the live registration of the name has it already
	Skipped    Outcome = "skipped"      // not adopted; Imported.Reason says why
	NotFound   Outcome = "not_found"    // the request names it, and the authority has no certificate of the name
)

// Imported is one certificate of an import.
type Imported struct {
	Certname string      // as the authority spells it
	Serial   node.Serial // empty if there is no certificate, or if the name was skipped
	UID      node.UID    // of the registration that has it
	NotAfter time.Time
	Outcome  Outcome
	Reason   string // why it was skipped; otherwise a warning, or empty

	Before, After *ENCAnswer // for the name, without the import and with it; nil: the import does not touch the name
}

// ENCAnswer is what Puppet Server gets for a name: espm's own YAML, or that of the other ENC that espm-enc asks. If
// both are empty, it gets no catalog.
type ENCAnswer struct{ YAML, Command string }

func (i *Imported) skip(format string, args ...any) {
	i.Outcome, i.Reason = Skipped, printable(fmt.Sprintf(format, args...))
}

// importer adopts certificates that the authority signed without espm.
type importer struct {
	core
	signed     Signed
	names      *certnames
	unfinished func(ctx context.Context, name node.Certname, but node.UID) ([]node.Revocation, []node.UID, error)
	commit     commitNode
}

// Import adopts certificates that the authority has already signed. Each is added to the live registration of
// its name, or to a new one. Import only reads from the authority, and revokes nothing. It skips certificates
// that are expired, revoked or not valid yet, and protected names.
//
// The certificates of one name are one commit. After an interruption Import can be called again: it reports the
// adopted ones as Already. report gets the outcomes of each batch when they are durable, and the number of all
// names; an error from report ends the import. Only an admin may import: the owner of an adopted certificate can
// revoke it, although espm did not issue it to that owner. Errors: node.ErrNotPermitted, ErrInvalid,
// ErrGroupNotFound and ErrConflict before anything is done, and node.ErrUnavailable.
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
	// One check with any valid name does for all: the registrations differ in nothing else.
	sample := node.Node{Certname: "import", Groups: s.Groups, Labels: s.Labels}
	if err := node.Join(append(bad, sample.Validate())...); err != nil {
		return nil, err
	}
	if _, err := checkNode(ctx, im.store, sample); err != nil {
		if conflict, ok := errors.AsType[*node.ConflictError](err); ok {
			conflict.Nodes = nil // the sample is no node
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

// importBatch imports some names and returns their outcomes, even with an error.
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
		return nil, fmt.Errorf("ask the authority for its certificates: %w", err)
	}
	errs := make([]error, len(ask))
	others := make([][]Imported, len(ask))
	var wg sync.WaitGroup
	for i := range ask { // in parallel, so that their commits share a wait for the disk
		wg.Go(func() { others[i], errs[i] = im.importName(ctx, at[i], held[i], s) })
	}
	wg.Wait()
	all = slices.DeleteFunc(append(all, slices.Concat(others...)...), func(in Imported) bool { return in.Outcome == "" })
	slices.SortStableFunc(all, func(a, b Imported) int { return strings.Compare(a.Certname, b.Certname) })
	for _, err := range errs {
		if err != nil { // the first one only: a full disk fails all in the same way
			return all, err
		}
	}
	return all, nil
}

// printable replaces unprintable characters: text from outside, such as a file's name, must not spoil a message or
// a terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c == unicode.ReplacementChar || !unicode.IsPrint(c) {
			return '?'
		}
		return c
	}, s)
}
