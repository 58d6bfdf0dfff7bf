// Package node is espm's domain: nodes, groups, classifications, certificates and revocations, and the rules for names
// and values. It imports the standard library only.
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
// A later registration of the same certname has another UID.
type UID string

// State is the state of a registration.
type State string

// The states of a registration.
const (
	Registered  State = "registered"  // classified, no certificate
	Issuing     State = "issuing"     // an issue intent is open
	Provisioned State = "provisioned" // has a live certificate
	Terminated  State = "terminated"  // no longer classified; only a tombstone is left
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
	Owner          string            `json:"owner,omitempty"` // Caller.Name of the owner: who registered it, unless an admin changed that; empty: none
	Classification Classification    `json:"classification"`
	Groups         []string          `json:"groups,omitempty"` // direct groups, sorted
	Labels         map[string]string `json:"labels,omitempty"`
	Serials        []Serial          `json:"serials,omitempty"` // of the live certificates, newest first
	CreatedAt      time.Time         `json:"created_at"`
	UpdatedAt      time.Time         `json:"updated_at"`
	TerminatedAt   time.Time         `json:"terminated_at,omitzero"`
	TerminatedFor  string            `json:"terminated_for,omitempty"` // why espm terminated it without a call; empty: a caller did
	RevokedFor     Reason            `json:"revoked_for,omitempty"`    // of a tombstone: the reason of its revocations
	ClaimWithin    time.Duration     `json:"claim_within,omitempty"`   // nanoseconds; 0: no launch deadline
	ClaimBy        time.Time         `json:"claim_by,omitzero"`        // the launch deadline
	ClaimedAt      time.Time         `json:"claimed_at,omitzero"`      // first look-up of a node with a launch deadline
	Requests       []string          `json:"requests,omitempty"`       // Request.Key of its request ids

	// LastSeenAt is when a catalog of the node was last requested; zero if never, or if the reader did not fill it in.
	// It is stored in another record, so that a look-up does not change this one.
	LastSeenAt time.Time `json:"-"`

	// Revision is the store's revision that last changed the record, 0 before it is stored.
	Revision int64 `json:"-"`
}

// Unclaimed reports whether a node has a launch deadline and was not seen yet.
func (n *Node) Unclaimed() bool { return !n.ClaimBy.IsZero() && n.ClaimedAt.IsZero() }

// Newest returns the serial of the newest live certificate; empty if there is none.
func (n Node) Newest() Serial {
	if len(n.Serials) == 0 {
		return ""
	}
	return n.Serials[0]
}

// Holds reports whether a certificate is one of the live ones.
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

// Classification is the ENC's answer, or the part of it that a node or a group sets. Values are JSON's:
// nil, bool, json.Number, string, []any and map[string]any.
type Classification struct {
	// Environment is Puppet's environment; empty leaves the choice to the agent.
	Environment string `json:"environment,omitempty"`
	// Classes maps a class to its parameters (nil: none). A nil parameter asks for the class's own default.
	Classes map[string]map[string]any `json:"classes,omitempty"`
	// Parameters are top-scope variables.
	Parameters map[string]any `json:"parameters,omitempty"`
	// Sensitive names the settings with sensitive values, sorted, as Setting.String spells them. Only the ENC and
	// callers with the right to see them get these values.
	Sensitive []string `json:"sensitive,omitempty"`
}

// Validate checks a node's own names, values and sizes. It does not read other records, so it does not check whether
// the groups exist.
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

// Validate checks a group as Node.Validate checks a node.
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

// Clone returns a copy with slices and maps of its own. The copy shares the parameter values, which are never changed
// in place.
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

// Spec returns the fields that a caller sets, without those that espm adds. Sensitive values are replaced by the
// placeholder.
func (n Node) Spec() Node {
	return Node{Certname: n.Certname, Classification: n.Classification.Redacted(), Groups: n.Groups, Labels: n.Labels, ClaimWithin: n.ClaimWithin}
}
