// Package auth says who a caller is and what it may do: principals by
// certificate, by token and by the local socket, their roles, the one table
// of permissions, and the limits of each principal. It knows no transport's
// framework and no store's engine.
package auth

import (
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

// permissions is the one table of who may call what: a method that is not in
// it is refused. What a provisioner may see and touch within a method is for
// the registry to decide.
var permissions = map[string][]node.Role{
	"espm.v1.NodeService/RegisterNode":  workers,
	"espm.v1.NodeService/GetNode":       everybody,
	"espm.v1.NodeService/ListNodes":     everybody,
	"espm.v1.NodeService/UpdateNode":    workers,
	"espm.v1.NodeService/ProvisionNode": workers,
	"espm.v1.NodeService/TerminateNode": workers,
	"espm.v1.NodeService/WatchNodes":    everybody,

	"espm.v1.CertificateService/PresignCertificate":     workers,
	"espm.v1.CertificateService/SignCertificateRequest": workers,
	"espm.v1.CertificateService/GetCertificate":         everybody,
	"espm.v1.CertificateService/ListCertificates":       everybody,
	"espm.v1.CertificateService/ImportCertificates":     admins, // it adopts nodes that nobody registered
	"espm.v1.CertificateService/GetTrustBundle":         everybody,

	"espm.v1.RevocationService/RevokeCertificate": workers,
	"espm.v1.RevocationService/GetRevocation":     everybody,
	"espm.v1.RevocationService/ListRevocations":   everybody,
	"espm.v1.RevocationService/RetryRevocation":   admins,
	"espm.v1.RevocationService/DropRevocation":    admins,
	"espm.v1.RevocationService/WatchRevocations":  everybody,

	"espm.v1.AuthorityService/GetAuthorityStatus": lookers,

	"espm.v1.GroupService/CreateGroup": admins,
	"espm.v1.GroupService/GetGroup":    everybody,
	"espm.v1.GroupService/ListGroups":  everybody,
	"espm.v1.GroupService/UpdateGroup": admins,
	"espm.v1.GroupService/DeleteGroup": admins,

	"espm.v1.ClassifierService/ClassifyNode": everybody,

	"espm.v1.TokenService/CreateToken": admins,
	"espm.v1.TokenService/GetToken":    admins,
	"espm.v1.TokenService/ListTokens":  admins,
	"espm.v1.TokenService/RotateToken": admins,
	"espm.v1.TokenService/RevokeToken": admins,

	"espm.v1.AuditService/ListAuditLines":   lookers,
	"espm.v1.AuditService/ExportAuditLines": lookers,
	"espm.v1.AuditService/VerifyAudit":      lookers,

	"espm.v1.BackupService/CreateBackup": admins, // it may hold the CA's key

	"grpc.health.v1.Health/Check": everybody,
	"grpc.health.v1.Health/List":  everybody,
	"grpc.health.v1.Health/Watch": everybody,

	// It tells what stands in the .proto files, which a program has and a person wants.
	"grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      lookers,
	"grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": lookers,
}

// Permits tells whether a role may call a method, "SERVICE/METHOD".
func Permits(method string, role node.Role) bool {
	return slices.Contains(permissions[method], role)
}

// Methods returns the methods of the table, sorted.
func Methods() []string { return slices.Sorted(maps.Keys(permissions)) }
