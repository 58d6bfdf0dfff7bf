package store

import "github.com/espm-project/espm/internal/node"

// MaxRecord is the most bytes that a node, a group or a token of a caller may have as it is stored. Bytes that espm
// adds later, such as a serial, do not count.
const MaxRecord = 1 << 20

// own is how many operations a commit needs besides those of its items: for the audit lines and a head.
const own = 8

// Fit returns how many items fit one commit if each needs a number of operations: at least one, at most want.
func (s *Store) Fit(want, operations int) int {
	return max(1, min(want, (s.engine.Bounds().Operations-own)/operations))
}

// limited records that a caller's record is too large. Err and Commit return the first such error.
func (c *Change) limited(field, name string, record []byte) {
	if c.err == nil && len(record) > MaxRecord {
		c.err = node.Invalid(field, "the record of %q has %d bytes as it is stored, the most is %d (1 MiB): make it smaller", name, len(record), MaxRecord)
	}
}

// Err returns a *node.InvalidError if the change can't be committed, whatever the store holds.
func (c *Change) Err() error { return c.err }
