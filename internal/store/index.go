package store

import (
	"github.com/espm-project/espm/internal/node"
)

// Index is what a batch does to index keys, whose values are empty. They are
// derived from the records, so they don't count towards the Bounds of an engine.
type Index struct {
	Puts    []string
	Deletes []string
}

// pastLife is a node as a tombstone has it.
type pastLife node.Node

// reindex returns what a write of a record does to its index keys. Old is the record as it was, or
// nil where there was none; now is the record as it will be, or nil where it goes. It is a pure function; the keys are in no order.
func reindex(old, now any) Index {
	before, after := indexKeys(old), indexKeys(now)
	var ix Index
	for key := range before {
		if _, stays := after[key]; !stays {
			ix.Deletes = append(ix.Deletes, key)
		}
	}
	for key, kind := range after {
		if _, was := before[key]; !was || kind == watched {
			ix.Puts = append(ix.Puts, key)
		}
	}
	return ix
}

// indexKind says when an index key is put.
type indexKind int

const (
	plain   indexKind = iota
	watched           // put with each write of the record, so that a watch of the index tells of it
)

// indexKeys returns the index keys of a record, each with its kind.
func indexKeys(record any) map[string]indexKind {
	switch r := record.(type) {
	case node.Node:
		return nodeIndex(r)
	case pastLife:
		return map[string]indexKind{tombstoneTimeKey(node.Node(r)): plain}
	case node.Group:
		keys := map[string]indexKind{}
		for _, p := range r.Parents {
			keys[childPrefix(p)+r.Name] = plain
		}
		return keys
	case node.Certificate:
		keys := map[string]indexKind{certOfKey(r): plain}
		if r.Owner != "" {
			keys[certOwnerKey(r)] = plain
		}
		return keys
	case node.Revocation:
		keys := map[string]indexKind{revocationOfPrefix(r.Certname, r.UID) + r.ID: plain}
		if r.Open() {
			keys[pendingKey(r.ID)] = plain
		}
		if r.Impossible != nil {
			keys[impossiblePrefix+r.ID] = plain
		}
		if r.Owner != "" {
			keys[revocationOwnerKey(r)] = plain
		}
		return keys
	case node.Token:
		if !r.RevokedAt.IsZero() {
			return nil
		}
		return map[string]indexKind{tokenHashPrefix(r.Hash) + r.Name: plain}
	}
	return nil
}

// nodeIndex returns the index keys of a live node.
func nodeIndex(n node.Node) map[string]indexKind {
	keys := make(map[string]indexKind, len(n.Labels)+len(n.Groups)+3)
	for k, v := range n.Labels {
		keys[labelPrefix(k, v)+string(n.Certname)] = plain
	}
	for _, g := range n.Groups {
		keys[memberPrefix(g)+string(n.Certname)] = plain
	}
	if len(n.Groups) > 0 {
		keys[setMemberPrefix(setName(n.Groups))+string(n.Certname)] = plain
	}
	if n.Unclaimed() {
		keys[claimKey(n)] = plain
	}
	if n.Owner != "" {
		keys[nodeOwnerKey(n)] = watched
	}
	return keys
}
