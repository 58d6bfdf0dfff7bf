// Package node is espm's domain: nodes, groups, what classifies them, the
// certificates and revocations that belong to them, and the rules their names
// and values must keep. It imports the standard library only.
package node

import (
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// UID names one registration: a UUIDv7 in lower-case text, unique for ever.
// The same certname may live again under a new UID.
type UID string

// State says how far a registration has come.
type State string

// The states of a registration.
const (
	Registered  State = "registered"  // classified, no certificate
	Issuing     State = "issuing"     // an issue intent is open
	Provisioned State = "provisioned" // holds a live certificate
	Terminated  State = "terminated"  // gone from the classifier; only a tombstone stays
)

// Bounds of a launch deadline.
const (
	MinClaimWithin = time.Minute
	MaxClaimWithin = 30 * 24 * time.Hour
)

// Node is one registration of a certname.
type Node struct {
	Certname       Certname          `json:"certname"`
	UID            UID               `json:"uid"`
	State          State             `json:"state"`
	Owner          string            `json:"owner,omitempty"` // the Caller.Name of who registered it, or was given it; empty: nobody's
	Classification Classification    `json:"classification"`
	Groups         []string          `json:"groups,omitempty"` // direct groups, sorted
	Labels         map[string]string `json:"labels,omitempty"`
	Serials        []Serial          `json:"serials,omitempty"` // of the live certificates, newest first
	CreatedAt      time.Time         `json:"created_at"`
	UpdatedAt      time.Time         `json:"updated_at"`
	TerminatedAt   time.Time         `json:"terminated_at,omitzero"`
	TerminatedFor  string            `json:"terminated_for,omitempty"` // why espm did it by itself; empty: a caller asked
	RevokedFor     Reason            `json:"revoked_for,omitempty"`    // of a terminated one: why its certificates are revoked
	ClaimWithin    time.Duration     `json:"claim_within,omitempty"`   // nanoseconds; 0: no launch deadline
	ClaimBy        time.Time         `json:"claim_by,omitzero"`        // the launch deadline
	ClaimedAt      time.Time         `json:"claimed_at,omitzero"`      // when a node with one was first seen
	Requests       []string          `json:"requests,omitempty"`       // Request.Key of those that belong to it

	// LastSeenAt is when its catalog was last asked for, where that was looked
	// up; zero: never. It is kept apart, so that the record does not change with it.
	LastSeenAt time.Time `json:"-"`

	// Revision is the store's revision that last changed the record, 0 before it is stored.
	Revision int64 `json:"-"`
}

// Unclaimed tells whether a node has a launch deadline and was not seen yet.
func (n *Node) Unclaimed() bool { return !n.ClaimBy.IsZero() && n.ClaimedAt.IsZero() }

// Newest returns the serial of the newest live certificate, "" where there is none.
func (n Node) Newest() Serial {
	if len(n.Serials) == 0 {
		return ""
	}
	return n.Serials[0]
}

// Holds tells whether a certificate is one of the live ones.
func (n Node) Holds(serial Serial) bool { return slices.Contains(n.Serials, serial) }

// Group is a named classification that nodes and other groups inherit.
type Group struct {
	Name           string         `json:"name"`
	Description    string         `json:"description,omitempty"`
	Parents        []string       `json:"parents,omitempty"` // groups it inherits, sorted
	Classification Classification `json:"classification"`
	CreatedAt      time.Time      `json:"created_at"`
	UpdatedAt      time.Time      `json:"updated_at"`

	Revision int64 `json:"-"`
}

// Classification is what the ENC answers, or a part of it. Values are JSON's:
// nil, bool, json.Number, string, []any and map[string]any.
type Classification struct {
	// Environment is Puppet's environment; empty leaves the choice to the agent.
	Environment string `json:"environment,omitempty"`
	// Classes maps a class to its parameters (nil: none). A nil parameter asks for the class's own default.
	Classes map[string]map[string]any `json:"classes,omitempty"`
	// Parameters are top-scope variables.
	Parameters map[string]any `json:"parameters,omitempty"`
	// Sensitive names the settings whose values only the ENC, and who may see
	// them, get: as Setting spells them, sorted.
	Sensitive []string `json:"sensitive,omitempty"`
}

// Validate checks a node's own part: names, values and sizes. It does not
// know other records, so it says nothing on groups that don't exist.
func (n *Node) Validate() error {
	var c checks
	c.certname("certname", string(n.Certname))
	c.size(n.Classification, maxNodeSize)
	c.groupNames("groups", n.Groups)
	c.labels(n.Labels)
	if w := n.ClaimWithin; w != 0 && (w < MinClaimWithin || w > MaxClaimWithin) {
		c.add("claim_within", "from %v to %v, is %v", Duration(MinClaimWithin), Duration(MaxClaimWithin), Duration(w))
	}
	return c.err()
}

// Validate checks a group's own part, as Node.Validate does for a node.
func (g *Group) Validate() error {
	var c checks
	c.groupName("name", g.Name)
	c.groupNames("parents", g.Parents)
	if slices.Contains(g.Parents, g.Name) {
		c.add("parents", "group %q can't inherit itself", g.Name)
	}
	if len(g.Description) > 1024 {
		c.add("description", "at most 1024 bytes, is %d", len(g.Description))
	}
	if !utf8.ValidString(g.Description) || strings.ContainsFunc(g.Description, unicode.IsControl) {
		c.add("description", "must be valid UTF-8 without control characters")
	}
	c.size(g.Classification, MaxGroupsSize)
	return c.err()
}

// Clone returns a copy that shares no slice or map of the node itself with it;
// parameter values, which nothing changes in place, are shared.
func (n Node) Clone() Node {
	n.Groups = slices.Clone(n.Groups)
	n.Serials = slices.Clone(n.Serials)
	n.Requests = slices.Clone(n.Requests)
	n.Labels = maps.Clone(n.Labels)
	n.Classification.Classes = maps.Clone(n.Classification.Classes)
	n.Classification.Parameters = maps.Clone(n.Classification.Parameters)
	n.Classification.Sensitive = slices.Clone(n.Classification.Sensitive)
	return n
}

// Spec returns what a caller decides of a node, without what espm adds and
// without sensitive values: their settings are there, with the placeholder.
func (n Node) Spec() Node {
	return Node{Certname: n.Certname, Classification: n.Classification.Redacted(), Groups: n.Groups, Labels: n.Labels, ClaimWithin: n.ClaimWithin}
}
