package rpc

import (
	"context"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// actions says of every method what a call that is refused has in its audit line. Of
// a read, only that it was not allowed is told; what a call changes has its line in the change's own commit.
var actions = map[string]node.Action{
	espmv1.NodeService_RegisterNode_FullMethodName:  node.ActionRegister,
	espmv1.NodeService_GetNode_FullMethodName:       node.ActionRead,
	espmv1.NodeService_ListNodes_FullMethodName:     node.ActionRead,
	espmv1.NodeService_UpdateNode_FullMethodName:    node.ActionUpdate,
	espmv1.NodeService_ProvisionNode_FullMethodName: node.ActionProvision,
	espmv1.NodeService_TerminateNode_FullMethodName: node.ActionTerminate,
	espmv1.NodeService_WatchNodes_FullMethodName:    node.ActionRead,

	espmv1.CertificateService_PresignCertificate_FullMethodName:     node.ActionBegin,
	espmv1.CertificateService_SignCertificateRequest_FullMethodName: node.ActionBegin,
	espmv1.CertificateService_GetCertificate_FullMethodName:         node.ActionRead,
	espmv1.CertificateService_ListCertificates_FullMethodName:       node.ActionRead,
	espmv1.CertificateService_ImportCertificates_FullMethodName:     node.ActionImport,
	espmv1.CertificateService_GetTrustBundle_FullMethodName:         node.ActionRead,

	espmv1.RevocationService_RevokeCertificate_FullMethodName: node.ActionOrder,
	espmv1.RevocationService_GetRevocation_FullMethodName:     node.ActionRead,
	espmv1.RevocationService_ListRevocations_FullMethodName:   node.ActionRead,
	espmv1.RevocationService_RetryRevocation_FullMethodName:   node.ActionRetry,
	espmv1.RevocationService_DropRevocation_FullMethodName:    node.ActionDrop,
	espmv1.RevocationService_WatchRevocations_FullMethodName:  node.ActionRead,

	espmv1.AuthorityService_GetAuthorityStatus_FullMethodName: node.ActionRead,

	espmv1.GroupService_CreateGroup_FullMethodName: node.ActionGroupCreate,
	espmv1.GroupService_GetGroup_FullMethodName:    node.ActionRead,
	espmv1.GroupService_ListGroups_FullMethodName:  node.ActionRead,
	espmv1.GroupService_UpdateGroup_FullMethodName: node.ActionGroupUpdate,
	espmv1.GroupService_DeleteGroup_FullMethodName: node.ActionGroupDelete,

	espmv1.ClassifierService_ClassifyNode_FullMethodName: node.ActionRead,

	espmv1.TokenService_CreateToken_FullMethodName: node.ActionTokenCreate,
	espmv1.TokenService_GetToken_FullMethodName:    node.ActionRead,
	espmv1.TokenService_ListTokens_FullMethodName:  node.ActionRead,
	espmv1.TokenService_RotateToken_FullMethodName: node.ActionTokenRotate,
	espmv1.TokenService_RevokeToken_FullMethodName: node.ActionTokenRevoke,

	espmv1.BackupService_CreateBackup_FullMethodName: node.ActionBackup,

	espmv1.AuditService_ListAuditLines_FullMethodName:   node.ActionRead,
	espmv1.AuditService_ExportAuditLines_FullMethodName: node.ActionRead,
	espmv1.AuditService_VerifyAudit_FullMethodName:      node.ActionRead,
}

// note leaves an audit line of a call that was refused, or failed, with a status.
func (e *edge) note(c *call, err error) {
	got := status.Code(err)
	action, known := actions["/"+c.method]
	if !known {
		action = node.ActionRead // health and reflection
	}
	denied := got == codes.PermissionDenied || got == codes.Unauthenticated
	if got == codes.OK || action == node.ActionRead && !denied {
		return
	}
	l := audit.Line(node.WithCaller(context.Background(), c.caller), e.now(), action)
	l.Method = c.method
	about(&l, c.req)
	e.audit.Refuse(l, outcome(err))
}

// revealed leaves a line, durable before the answer goes out, of a call that shows sensitive values.
func (e *edge) revealed(ctx context.Context, c *call) error {
	req, ok := c.req.(interface{ GetRevealSensitive() bool })
	if !ok || !req.GetRevealSensitive() {
		return nil
	}
	l := audit.Line(ctx, e.now(), node.ActionRead)
	l.Comment = "sensitive values"
	about(&l, c.req)
	return e.audit.Record(ctx, l)
}

// about fills in what a request is about. What is not in the form of a name, a uid, a serial or an
// id is left out: it may be anything, such as a key that was put into the wrong field.
func about(l *node.AuditLine, req any) {
	if m, ok := req.(interface{ GetNode() *espmv1.Node }); ok {
		setName(l, m.GetNode().GetCertname())
		setUID(l, m.GetNode().GetUid())
	}
	if m, ok := req.(interface{ GetCertname() string }); ok {
		setName(l, m.GetCertname())
	}
	if m, ok := req.(interface{ GetUid() string }); ok {
		setUID(l, m.GetUid())
	}
	if m, ok := req.(interface{ GetSerial() string }); ok {
		if serial, err := parseSerial(m.GetSerial()); err == nil {
			l.Serial = serial
		}
	}
	if m, ok := req.(interface{ GetRequestId() string }); ok && registry.CheckRequestID(m.GetRequestId()) == nil {
		l.RequestID = m.GetRequestId()
	}
	switch m := req.(type) {
	case interface{ GetGroup() *espmv1.Group }:
		setGroup(l, m.GetGroup().GetName())
	case interface{ GetName() string }:
		setNamed(l, m.GetName())
	case interface{ GetId() string }:
		if checkID(m.GetId()) == nil {
			l.Object = "revocation/" + m.GetId()
		}
	}
}

func setName(l *node.AuditLine, name string) {
	if certname, err := node.ParseCertname(name); err == nil {
		l.Certname = certname
	}
}

func setUID(l *node.AuditLine, uid string) {
	if checkUID(uid) == nil {
		l.UID = node.UID(uid)
	}
}

// setNamed fills in a name that is a group's, or a token's where tokens are what the method is about.
func setNamed(l *node.AuditLine, name string) {
	if !strings.HasPrefix(l.Method, espmv1.TokenService_ServiceDesc.ServiceName+"/") {
		setGroup(l, name)
	} else if node.CheckTokenName("name", name) == nil {
		l.Object = "token/" + name
	}
}

func setGroup(l *node.AuditLine, name string) {
	if node.CheckGroupName("group", name) == nil {
		l.Object = "group/" + name
	}
}

// outcome is the reason of an error that became a status; gRPC's word for it where there is none.
func outcome(err error) string {
	s := status.Convert(err)
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			return info.GetReason()
		}
	}
	return code.Code(s.Code()).String() // #nosec G115 -- 17 codes
}
