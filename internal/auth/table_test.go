package auth

import (
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
)

// What each role may call, written down once more: who widens the table has to mean it.
func TestPermissions(t *testing.T) {
	want := map[string]string{
		"a":   `ForgetNode ImportCertificates RetryRevocation DropRevocation CreateGroup UpdateGroup DeleteGroup CreateToken GetToken ListTokens RotateToken RevokeToken CreateBackup AcceptClock`,
		"ar":  `GetAuthorityStatus GetClock ListAuditLines ExportAuditLines VerifyAudit ServerReflectionInfo`,
		"ap":  `RegisterNode UpdateNode ProvisionNode TerminateNode PresignCertificate SignCertificateRequest RevokeCertificate`,
		"apr": `GetNode ListNodes WatchNodes GetCertificate ListCertificates GetTrustBundle GetRevocation ListRevocations WatchRevocations GetGroup ListGroups ClassifyNode Check List Watch`,
	}
	letters := map[node.Role]string{node.Admin: "a", node.Provisioner: "p", node.Reader: "r"}
	known := map[string]string{}
	for roles, methods := range want {
		for _, m := range strings.Fields(methods) {
			known[m] = roles
		}
	}
	for _, method := range Methods() {
		name := method[strings.LastIndexByte(method, '/')+1:]
		got := ""
		for _, role := range node.Roles {
			if Permits(method, node.Caller{Role: role, Local: true}) {
				got += letters[role]
			}
		}
		if got != known[name] {
			t.Errorf("%s: %q may, want %q", method, got, known[name])
		}
		if permissions[method].action == "" {
			t.Errorf("%s has no action: say what a refused call of it has in its audit line", method)
		}
	}
	for _, method := range Methods() {
		name := method[strings.LastIndexByte(method, '/')+1:]
		if remote := Permits(method, node.Caller{Role: node.Admin}); remote == (name == "AcceptClock") {
			t.Errorf("%s: an admin who is not on the local socket may: %v", method, remote)
		}
	}
	for _, role := range append([]node.Role{"", "x"}, node.Roles...) {
		if Permits("espm.v1.NodeService/NotThere", node.Caller{Role: role, Local: true}) {
			t.Errorf("%q may call what is not in the table", role)
		}
	}
	for _, role := range []node.Role{"", "x"} {
		if Permits("grpc.health.v1.Health/Check", node.Caller{Role: role, Local: true}) {
			t.Errorf("%q may do something", role)
		}
	}
}
