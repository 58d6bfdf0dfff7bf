package store

import (
	"context"

	"github.com/espm-project/espm/internal/node"
)

// For tests, which use a real engine, and an engine imports this package.

// CurrentSchema is the version that this program writes.
var CurrentSchema = currentSchema

// Step is one step of a migration.
type Step struct {
	Name  string
	Batch func(ctx context.Context, s *Store, after string) (b Batch, last string, err error)
}

// MigrateBy is Migrate by other steps.
func (s *Store) MigrateBy(ctx context.Context, m Migration, versions [][]Step) error {
	var all [][]step
	for _, version := range versions {
		steps := []step{}
		for _, one := range version {
			steps = append(steps, step{one.Name, one.Batch})
		}
		all = append(all, steps)
	}
	return s.migrate(ctx, m, all)
}

// StoreOf returns the Store in an engine, whatever its schema.
func StoreOf(e Engine) *Store { return storeOf(e) }

// HasOneSerial tells whether a node's record is one of schema version 1 with a certificate.
func HasOneSerial(rec Record) (bool, error) {
	_, old, err := listedSerial(rec)
	return old, err
}

// KeySamples is one key of each kind, with what it is on the disks of the first release.
var KeySamples = map[string]string{
	schemaKey:                         "schema",
	encKey:                            "enc",
	nodeKey("web01"):                  "node/web01",
	tombstoneKey("web01", "u1"):       "tombstone/web01/u1",
	groupKey("base"):                  "group/base",
	certKey("00FF"):                   "cert/00FF",
	issueKey("u1"):                    "issue/u1",
	requestKey("a/b"):                 "request/a/b",
	revocationKey("r1"):               "revocation/r1",
	labelPrefix("example.com/k", "v"): "ix/node-label/example.com/k=v/",
	memberPrefix("base"):              "ix/node-group/base/",
	childPrefix("base"):               "ix/group-child/base/",
	certOfPrefix("web01"):             "ix/cert-of/web01/",
	revocationOfPrefix("web01", "u1"): "ix/revocation-of/web01/u1/",
	pendingKey("r1"):                  "ix/pending/r1",
	tombstoneTimePrefix:               "ix/tombstone-time/",
	groupsMark:                        "mark/groups",
	nodeOwnerPrefix("token:a/b%"):     "ix/node-owner/token:a%2Fb%25/",
	certOwnerPrefix("token:ci"):       "ix/cert-owner/token:ci/",
	revocationOwnerPrefix("token:ci"): "ix/revocation-owner/token:ci/",
	requestKey(node.Request{ID: "a/b", Principal: "token:ci"}.Key()): "request/token:ci a/b",
	auditNewPrefix + "i1": "audit/new/i1",
	auditLineKey(42):      "audit/line/0000000000000000042",
	auditHeadKey:          "audit/head",
	setsMark:              "mark/sets",
	setPrefix + setName([]string{"base", "web"}):      "mark/set/base,web",
	setMemberPrefix(setName([]string{"base", "web"})): "ix/node-set/base,web/",
}
