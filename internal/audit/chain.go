package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"

	"github.com/espm-project/espm/internal/node"
)

// Genesis is the Prev of the first line of a chain.
var Genesis = strings.Repeat("0", 2*sha256.Size)

// Hash returns the hash of a line at its place: SHA-256 in lower-case hexadecimal, over the fields in the order below.
// Each field is a netstring: its length in bytes in decimal, a colon, the bytes, a comma.
func Hash(l node.SealedLine) string {
	h := sha256.New()
	for _, field := range []string{
		"espm audit 1", l.Prev, strconv.FormatInt(l.Seq, 10), strconv.FormatInt(l.Revision, 10),
		l.ID, l.Time.String(), l.Principal, string(l.Role), l.Peer, l.Method, string(l.Action),
		string(l.Certname), string(l.UID), string(l.Serial), l.Object, l.RequestID, l.Comment, l.Outcome,
		strconv.FormatInt(l.Count, 10), l.Since.String(),
	} {
		netstring(h, field)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func netstring(h hash.Hash, s string) {
	_, _ = io.WriteString(h, strconv.Itoa(len(s))+":"+s+",") // a hash never fails
}

// Anchor is a line's place and hash, as an operator noted them outside espm.
type Anchor struct {
	Seq  int64
	Hash string
}

// ParseAnchor reads SEQ:HASH.
func ParseAnchor(s string) (Anchor, error) {
	number, sum, ok := strings.Cut(s, ":")
	seq, err := strconv.ParseInt(number, 10, 64)
	if raw, hexErr := hex.DecodeString(sum); !ok || err != nil || seq < 1 || hexErr != nil || len(raw) != sha256.Size || sum != strings.ToLower(sum) {
		return Anchor{}, fmt.Errorf("%q is not SEQ:HASH, the number of a line and its hash, 64 hexadecimal digits in lower case", s)
	}
	return Anchor{seq, sum}, nil
}

func (a Anchor) String() string { return fmt.Sprintf("%d:%s", a.Seq, a.Hash) }

// Flaw is the first thing that is wrong with a chain.
type Flaw struct {
	Seq int64 // of the line, or of the place where it should be
	Why string
}

func (f *Flaw) Error() string { return fmt.Sprintf("line %d: %s", f.Seq, f.Why) }

// TooOldError says that the line of an anchor was pruned, or is not in the export.
type TooOldError struct{ Noted, First int64 }

func (e *TooOldError) Error() string {
	return fmt.Sprintf("line %d, which was noted, is older than the first line that there is, %d: nothing can be said of it", e.Noted, e.First)
}

// Checker checks the lines of a chain one by one. The zero Checker accepts any line as the first, as an export may
// begin anywhere.
type Checker struct {
	Expect *Anchor // a line that must match; nil: none
	Last   Anchor  // the last line without a flaw
	First  int64   // the first checked line; 0: none yet
	Lines  int64
}

// Check checks the next line. Its error is a *Flaw.
func (c *Checker) Check(l node.SealedLine) error {
	want := c.Last.Seq + 1
	switch {
	case c.Last.Hash == "" && l.Seq < 1:
		return &Flaw{1, fmt.Sprintf("it is numbered %d", l.Seq)}
	case c.Last.Hash != "" && l.Seq > want:
		return &Flaw{want, fmt.Sprintf("it is missing; line %d follows", l.Seq)}
	case c.Last.Hash != "" && l.Seq < want:
		return &Flaw{want, fmt.Sprintf("line %d stands in its place", l.Seq)}
	case c.Last.Hash != "" && l.Prev != c.Last.Hash:
		return &Flaw{l.Seq, fmt.Sprintf("it does not continue the line before, whose hash is %s", c.Last.Hash)}
	case l.Seq == 1 && l.Prev != Genesis:
		return &Flaw{1, "it does not begin a chain"}
	case Hash(l) != l.Hash:
		return &Flaw{l.Seq, "it was altered: its hash is not that of its fields"}
	case c.Expect != nil && c.Expect.Seq == l.Seq && c.Expect.Hash != l.Hash:
		return &Flaw{l.Seq, fmt.Sprintf("its hash is %s, and was noted as %s: the chain was rewritten", l.Hash, c.Expect.Hash)}
	}
	if c.First == 0 {
		c.First = l.Seq
	}
	c.Last = Anchor{l.Seq, l.Hash}
	c.Lines++
	return nil
}

// End checks, after the last line, that the line of the anchor was among the checked ones. Its error is a *Flaw or a
// *TooOldError.
func (c *Checker) End() error {
	switch e := c.Expect; {
	case e == nil:
		return nil
	case e.Seq > c.Last.Seq:
		return &Flaw{c.Last.Seq + 1, fmt.Sprintf("the chain ends before it, and line %d was noted: the tail was cut off", e.Seq)}
	case e.Seq < c.First:
		return &TooOldError{e.Seq, c.First}
	}
	return nil
}
