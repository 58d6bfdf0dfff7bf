package store

import "github.com/espm-project/espm/internal/node"

// MaxRecord is the most bytes that a record may have as it is stored: a node,
// a group or a token that a caller writes. What espm itself adds to a record
// later, such as a serial, does not count.
const MaxRecord = 1 << 20

// own is how many operations of a commit are not those of the items in it: the audit lines and a head.
const own = 8

// Fit returns how many items go into one commit, each with so many operations; want at most, one at least.
func (s *Store) Fit(want, operations int) int {
	return max(1, min(want, (s.engine.Bounds().Operations-own)/operations))
}

// limited notes that a record which a caller writes is too large. Err and Commit return the first one.
func (c *Change) limited(field, name string, record []byte) {
	if c.err == nil && len(record) > MaxRecord {
		c.err = node.Invalid(field, "the record of %q has %d bytes as it is stored, the most is %d (1 MiB): make it smaller", name, len(record), MaxRecord)
	}
}

// Err returns why the change can't be committed, whatever is in the store: the error is a *node.InvalidError.
func (c *Change) Err() error { return c.err }
