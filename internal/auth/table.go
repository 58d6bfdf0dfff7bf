// Package auth identifies callers and decides what each caller may do. A certificate, a token or the local socket
// identifies a principal. The package also has the roles, the table of permissions and the limits of each principal.
// Every transport lets its callers in through a Gate. The package depends on no transport's framework and on no
// store's engine.
package auth

import (
	"cmp"
	"maps"
	"slices"

	"github.com/espm-project/espm/internal/node"
)

var (
	admins       = []node.Role{node.Admin}
	readers      = []node.Role{node.Admin, node.Reader}
	provisioners = []node.Role{node.Admin, node.Provisioner}
	anyRole      = []node.Role{node.Admin, node.Provisioner, node.Reader}
)

// permission is the gate's rule for one method.
type permission struct {
	roles     []node.Role
	action    node.Action // in the audit line of a failed call; for ActionRead, only refusals get a line
	provision bool        // a call counts as an open provision
	local     bool        // only for callers on the local socket without a token
}

// permissions is the only table of the roles that may call each method. A method that is not in the table is refused.
// The registry decides which records a provisioner may read and change.
var permissions = map[string]permission{
	"espm.v1.NodeService/RegisterNode":  {roles: provisioners, action: node.ActionRegister},
	"espm.v1.NodeService/GetNode":       {roles: anyRole, action: node.ActionRead},
	"espm.v1.NodeService/ListNodes":     {roles: anyRole, action: node.ActionRead},
	"espm.v1.NodeService/UpdateNode":    {roles: provisioners, action: node.ActionUpdate},
	"espm.v1.NodeService/ProvisionNode": {roles: provisioners, action: node.ActionProvision, provision: true},
	"espm.v1.NodeService/TerminateNode": {roles: provisioners, action: node.ActionTerminate},
	"espm.v1.NodeService/ForgetNode":    {roles: admins, action: node.ActionGiveUp}, // it leaves valid certificates without a record
	"espm.v1.NodeService/WatchNodes":    {roles: anyRole, action: node.ActionRead},

	"espm.v1.CertificateService/PresignCertificate":     {roles: provisioners, action: node.ActionBegin, provision: true},
	"espm.v1.CertificateService/SignCertificateRequest": {roles: provisioners, action: node.ActionBegin, provision: true},
	"espm.v1.CertificateService/GetCertificate":         {roles: anyRole, action: node.ActionRead},
	"espm.v1.CertificateService/ListCertificates":       {roles: anyRole, action: node.ActionRead},
	"espm.v1.CertificateService/ImportCertificates":     {roles: admins, action: node.ActionImport}, // it adopts nodes that nobody registered
	"espm.v1.CertificateService/GetTrustBundle":         {roles: anyRole, action: node.ActionRead},

	"espm.v1.RevocationService/RevokeCertificate": {roles: provisioners, action: node.ActionOrder},
	"espm.v1.RevocationService/GetRevocation":     {roles: anyRole, action: node.ActionRead},
	"espm.v1.RevocationService/ListRevocations":   {roles: anyRole, action: node.ActionRead},
	"espm.v1.RevocationService/RetryRevocation":   {roles: admins, action: node.ActionRetry},
	"espm.v1.RevocationService/DropRevocation":    {roles: admins, action: node.ActionDrop},
	"espm.v1.RevocationService/WatchRevocations":  {roles: anyRole, action: node.ActionRead},

	"espm.v1.AuthorityService/GetAuthorityStatus": {roles: readers, action: node.ActionRead},

	"espm.v1.ClockService/GetClock":    {roles: readers, action: node.ActionRead},
	"espm.v1.ClockService/AcceptClock": {roles: admins, action: node.ActionClockAccept, local: true}, // a stolen token must not make espm sign with a wrong clock

	"espm.v1.GroupService/CreateGroup": {roles: admins, action: node.ActionGroupCreate},
	"espm.v1.GroupService/GetGroup":    {roles: anyRole, action: node.ActionRead},
	"espm.v1.GroupService/ListGroups":  {roles: anyRole, action: node.ActionRead},
	"espm.v1.GroupService/UpdateGroup": {roles: admins, action: node.ActionGroupUpdate},
	"espm.v1.GroupService/DeleteGroup": {roles: admins, action: node.ActionGroupDelete},

	"espm.v1.ClassifierService/ClassifyNode": {roles: anyRole, action: node.ActionRead},

	"espm.v1.TokenService/CreateToken": {roles: admins, action: node.ActionTokenCreate},
	"espm.v1.TokenService/GetToken":    {roles: admins, action: node.ActionRead},
	"espm.v1.TokenService/ListTokens":  {roles: admins, action: node.ActionRead},
	"espm.v1.TokenService/RotateToken": {roles: admins, action: node.ActionTokenRotate},
	"espm.v1.TokenService/RevokeToken": {roles: admins, action: node.ActionTokenRevoke},

	"espm.v1.AuditService/ListAuditLines":   {roles: readers, action: node.ActionRead},
	"espm.v1.AuditService/ExportAuditLines": {roles: readers, action: node.ActionRead},
	"espm.v1.AuditService/VerifyAudit":      {roles: readers, action: node.ActionRead},

	"espm.v1.BackupService/CreateBackup": {roles: admins, action: node.ActionBackup}, // the backup may contain the CA's key

	"grpc.health.v1.Health/Check": {roles: anyRole, action: node.ActionRead},
	"grpc.health.v1.Health/List":  {roles: anyRole, action: node.ActionRead},
	"grpc.health.v1.Health/Watch": {roles: anyRole, action: node.ActionRead},

	// Reflection serves the .proto files to people's tools, such as grpcurl. A provisioner's program has its own copy.
	"grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {roles: readers, action: node.ActionRead},
	"grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {roles: readers, action: node.ActionRead},
}

// Permits reports whether a caller may call a method. A method has the form "SERVICE/METHOD".
func Permits(method string, c node.Caller) bool {
	p := permissions[method]
	return slices.Contains(p.roles, c.Role) && (c.Local || !p.local)
}

// ActionOf returns the action in the audit line of a failed call. A method that is not in the table counts as a read.
func ActionOf(method string) node.Action {
	return cmp.Or(permissions[method].action, node.ActionRead)
}

// Methods returns the methods of the table, sorted.
func Methods() []string { return slices.Sorted(maps.Keys(permissions)) }
