package store

import (
	"fmt"
	"strings"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// The keys. Primary records:
//
//	schema                         the schema version
//	node/CERTNAME                  node.Node, live registrations only
//	tombstone/CERTNAME/UID         node.Node, terminated
//	group/NAME                     node.Group
//	cert/SERIAL                    node.Certificate
//	issue/UID                      node.IssueIntent, open ones only
//	request/PRINCIPAL ID           node.Request; without PRINCIPAL where it was made before they had one
//	revocation/ID                  node.Revocation
//	enc                            ENCSettings
//	clock                          Clock
//	token/NAME                     node.Token, revoked ones too
//	token-use/NAME                 tokenUse; no watch tells of it
//	seen/CERTNAME                  Seen, of the live registration; no watch tells of it
//	audit/new/ID                   []node.AuditLine of one change, not in the chain yet; ID is the first one's
//	audit/line/SEQ                 node.SealedLine, SEQ in 19 digits; no watch tells of it
//	audit/head                     node.AuditHead; likewise
//
// Indexes, written in the commit of the record they point to; their value is empty:
//
//	ix/node-label/KEY=VALUE/CERTNAME
//	ix/node-group/GROUP/CERTNAME
//	ix/node-set/GROUP,GROUP.../CERTNAME  the node's groups, sorted
//	ix/group-child/PARENT/GROUP
//	ix/node-owner/OWNER/CERTNAME   put with each write of the node, so that it can be watched
//	ix/cert-owner/OWNER/CERTNAME/UID/SERIAL
//	ix/revocation-owner/OWNER/ID
//	ix/cert-of/CERTNAME/UID/SERIAL
//	ix/revocation-of/CERTNAME/UID/ID
//	ix/pending/ID                  open revocations
//	ix/impossible/ID               revocations that the authority can't carry out
//	ix/tombstone-time/TIME/CERTNAME/UID
//	ix/token/HASH/NAME             tokens that are not revoked
//	ix/claim/TIME/CERTNAME         live registrations with a launch deadline that were not seen yet
//
// Marks, put to be guarded by others; only their revision counts:
//
//	mark/groups                    any group was written
//	mark/sets                      a node came to a set of groups that was not known
//	mark/set/GROUP,GROUP...        a node joined the set, or a node of it sets something else; see GroupSet
//
// None of the parts can hold a "/" but a label's key and a request, which
// stand where that is not ambiguous (a label's key holds no "="). A group's name holds no ",". In OWNER it is escaped.
const (
	schemaKey     = "schema"
	encKey        = "enc"
	clockKey      = "clock"
	nodePrefix    = "node/"
	groupPrefix   = "group/"
	certPrefix    = "cert/"
	issuePrefix   = "issue/"
	revokePrefix  = "revocation/"
	pendingPrefix = "ix/pending/"

	impossiblePrefix = "ix/impossible/"

	claimPrefix = "ix/claim/"
	tokenPrefix = "token/"
	groupsMark  = "mark/groups"
	setsMark    = "mark/sets"
	setPrefix   = "mark/set/"
	setComma    = ","

	auditNewPrefix  = "audit/new/"
	auditLinePrefix = "audit/line/"
	auditHeadKey    = "audit/head"
)

func nodeKey(name node.Certname) string   { return nodePrefix + string(name) }
func seenKey(name node.Certname) string   { return "seen/" + string(name) }
func tokenKey(name string) string         { return tokenPrefix + name }
func tokenUseKey(name string) string      { return "token-use/" + name }
func tokenHashPrefix(hash string) string  { return "ix/token/" + hash + "/" }
func groupKey(name string) string         { return groupPrefix + name }
func certKey(s node.Serial) string        { return certPrefix + string(s) }
func issueKey(uid node.UID) string        { return issuePrefix + string(uid) }
func requestKey(key string) string        { return "request/" + key }
func revocationKey(id string) string      { return revokePrefix + id }
func pendingKey(id string) string         { return pendingPrefix + id }
func labelPrefix(k, v string) string      { return "ix/node-label/" + k + "=" + v + "/" }
func memberPrefix(group string) string    { return "ix/node-group/" + group + "/" }
func setMemberPrefix(set string) string   { return "ix/node-set/" + set + "/" }
func childPrefix(parent string) string    { return "ix/group-child/" + parent + "/" }
func certOfPrefix(n node.Certname) string { return "ix/cert-of/" + string(n) + "/" }

// ownerPart keeps one owner's keys from standing among those of another, whatever it is called.
var ownerPart = strings.NewReplacer("%", "%25", "/", "%2F").Replace

func nodeOwnerPrefix(owner string) string { return "ix/node-owner/" + ownerPart(owner) + "/" }
func certOwnerPrefix(owner string) string { return "ix/cert-owner/" + ownerPart(owner) + "/" }

func revocationOwnerPrefix(owner string) string {
	return "ix/revocation-owner/" + ownerPart(owner) + "/"
}

func nodeOwnerKey(n node.Node) string { return nodeOwnerPrefix(n.Owner) + string(n.Certname) }

func certOwnerKey(c node.Certificate) string {
	return certOwnerPrefix(c.Owner) + string(c.Certname) + "/" + string(c.UID) + "/" + string(c.Serial)
}

func revocationOwnerKey(r node.Revocation) string { return revocationOwnerPrefix(r.Owner) + r.ID }

const tombstonesPrefix = "tombstone/"

func tombstonePrefix(name node.Certname) string { return tombstonesPrefix + string(name) + "/" }

func tombstoneKey(name node.Certname, uid node.UID) string {
	return tombstonePrefix(name) + string(uid)
}

func certOfLifePrefix(name node.Certname, uid node.UID) string {
	return certOfPrefix(name) + string(uid) + "/"
}

func certOfKey(c node.Certificate) string {
	return certOfLifePrefix(c.Certname, c.UID) + string(c.Serial)
}

func revocationsOfPrefix(name node.Certname) string { return "ix/revocation-of/" + string(name) + "/" }

func revocationOfPrefix(name node.Certname, uid node.UID) string {
	return revocationsOfPrefix(name) + string(uid) + "/"
}

const tombstoneTimePrefix = "ix/tombstone-time/"

func tombstoneTimeKey(n node.Node) string {
	return tombstoneTimePrefix + n.TerminatedAt.UTC().Format(time.RFC3339) + "/" + string(n.Certname) + "/" + string(n.UID)
}

func claimKey(n node.Node) string {
	return claimPrefix + n.ClaimBy.UTC().Format(time.RFC3339) + "/" + string(n.Certname)
}

func auditLineKey(seq int64) string { return fmt.Sprintf("%s%019d", auditLinePrefix, seq) }

// lastPart returns what follows the last "/" of an index key.
func lastPart(key string) string { return key[strings.LastIndexByte(key, '/')+1:] }
