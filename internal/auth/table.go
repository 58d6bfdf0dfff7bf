// Package auth says who a caller is and what it may do: principals by
// certificate, by token and by the local socket, their roles, the one table
// of permissions, and the limits of each principal. Gate puts them together:
// every transport lets its callers in through it. The package knows no
// transport's framework and no store's engine.
package auth

import (
	"cmp"
	"maps"
	"slices"

	"github.com/espm-project/espm/internal/node"
)

var (
	admins    = []node.Role{node.Admin}
	lookers   = []node.Role{node.Admin, node.Reader}
	workers   = []node.Role{node.Admin, node.Provisioner}
	everybody = []node.Role{node.Admin, node.Provisioner, node.Reader}
)

// permission is what the gate knows of a method.
type permission struct {
	roles     []node.Role
	action    node.Action // what the audit line of a refused call says; of a read, only refusals are told
	provision bool        // it counts as a provision that is under way
	local     bool        // callers on the local socket only, without a token
}

// permissions is the one table of who may call what: a method that is not in
// it is refused. What a provisioner may see and touch within a method is for
// the registry to decide.
var permissions = map[string]permission{
	"espm.v1.NodeService/RegisterNode":  {roles: workers, action: node.ActionRegister},
	"espm.v1.NodeService/GetNode":       {roles: everybody, action: node.ActionRead},
	"espm.v1.NodeService/ListNodes":     {roles: everybody, action: node.ActionRead},
	"espm.v1.NodeService/UpdateNode":    {roles: workers, action: node.ActionUpdate},
	"espm.v1.NodeService/ProvisionNode": {roles: workers, action: node.ActionProvision, provision: true},
	"espm.v1.NodeService/TerminateNode": {roles: workers, action: node.ActionTerminate},
	"espm.v1.NodeService/ForgetNode":    {roles: admins, action: node.ActionGiveUp}, // it leaves certificates valid that nobody has a record of
	"espm.v1.NodeService/WatchNodes":    {roles: everybody, action: node.ActionRead},

	"espm.v1.CertificateService/PresignCertificate":     {roles: workers, action: node.ActionBegin, provision: true},
	"espm.v1.CertificateService/SignCertificateRequest": {roles: workers, action: node.ActionBegin, provision: true},
	"espm.v1.CertificateService/GetCertificate":         {roles: everybody, action: node.ActionRead},
	"espm.v1.CertificateService/ListCertificates":       {roles: everybody, action: node.ActionRead},
	"espm.v1.CertificateService/ImportCertificates":     {roles: admins, action: node.ActionImport}, // it adopts nodes that nobody registered
	"espm.v1.CertificateService/GetTrustBundle":         {roles: everybody, action: node.ActionRead},

	"espm.v1.RevocationService/RevokeCertificate": {roles: workers, action: node.ActionOrder},
	"espm.v1.RevocationService/GetRevocation":     {roles: everybody, action: node.ActionRead},
	"espm.v1.RevocationService/ListRevocations":   {roles: everybody, action: node.ActionRead},
	"espm.v1.RevocationService/RetryRevocation":   {roles: admins, action: node.ActionRetry},
	"espm.v1.RevocationService/DropRevocation":    {roles: admins, action: node.ActionDrop},
	"espm.v1.RevocationService/WatchRevocations":  {roles: everybody, action: node.ActionRead},

	"espm.v1.AuthorityService/GetAuthorityStatus": {roles: lookers, action: node.ActionRead},

	"espm.v1.ClockService/GetClock":    {roles: lookers, action: node.ActionRead},
	"espm.v1.ClockService/AcceptClock": {roles: admins, action: node.ActionClockAccept, local: true}, // a stolen token must not have espm sign with a wrong clock

	"espm.v1.GroupService/CreateGroup": {roles: admins, action: node.ActionGroupCreate},
	"espm.v1.GroupService/GetGroup":    {roles: everybody, action: node.ActionRead},
	"espm.v1.GroupService/ListGroups":  {roles: everybody, action: node.ActionRead},
	"espm.v1.GroupService/UpdateGroup": {roles: admins, action: node.ActionGroupUpdate},
	"espm.v1.GroupService/DeleteGroup": {roles: admins, action: node.ActionGroupDelete},

	"espm.v1.ClassifierService/ClassifyNode": {roles: everybody, action: node.ActionRead},

	"espm.v1.TokenService/CreateToken": {roles: admins, action: node.ActionTokenCreate},
	"espm.v1.TokenService/GetToken":    {roles: admins, action: node.ActionRead},
	"espm.v1.TokenService/ListTokens":  {roles: admins, action: node.ActionRead},
	"espm.v1.TokenService/RotateToken": {roles: admins, action: node.ActionTokenRotate},
	"espm.v1.TokenService/RevokeToken": {roles: admins, action: node.ActionTokenRevoke},

	"espm.v1.AuditService/ListAuditLines":   {roles: lookers, action: node.ActionRead},
	"espm.v1.AuditService/ExportAuditLines": {roles: lookers, action: node.ActionRead},
	"espm.v1.AuditService/VerifyAudit":      {roles: lookers, action: node.ActionRead},

	"espm.v1.BackupService/CreateBackup": {roles: admins, action: node.ActionBackup}, // it may hold the CA's key

	"grpc.health.v1.Health/Check": {roles: everybody, action: node.ActionRead},
	"grpc.health.v1.Health/List":  {roles: everybody, action: node.ActionRead},
	"grpc.health.v1.Health/Watch": {roles: everybody, action: node.ActionRead},

	// It tells what stands in the .proto files, which a program has and a person wants.
	"grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {roles: lookers, action: node.ActionRead},
	"grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {roles: lookers, action: node.ActionRead},
}

// Permits tells whether a caller may call a method, "SERVICE/METHOD".
func Permits(method string, c node.Caller) bool {
	p := permissions[method]
	return slices.Contains(p.roles, c.Role) && (c.Local || !p.local)
}

// ActionOf returns what the audit line of a refused call of a method says. What is not in the table is a read.
func ActionOf(method string) node.Action {
	return cmp.Or(permissions[method].action, node.ActionRead)
}

// Methods returns the methods of the table, sorted.
func Methods() []string { return slices.Sorted(maps.Keys(permissions)) }
