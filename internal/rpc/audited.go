package rpc

import (
	"context"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// auditReveal audits a call that shows sensitive values. The audit line is durable before the answer is sent.
func (e *edge) auditReveal(ctx context.Context, c *call) error {
	req, ok := c.req.(interface{ GetRevealSensitive() bool })
	if !ok || !req.GetRevealSensitive() {
		return nil
	}
	l := audit.Line(ctx, e.now(), node.ActionRead)
	l.Comment = "sensitive values"
	about(&l, c.req)
	return e.audit.Record(ctx, l)
}

// about adds the names, the uid, the serial and the ids of a request to an audit line. An invalid value is left out:
// the client may have put a secret into the wrong field.
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

// setNamed adds the name of a token for methods of the TokenService, and the name of a group for all others.
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

// outcome returns the reason of an error, or the name of the code if gRPC made the error.
func outcome(err error) string {
	s := status.Convert(toStatus(err))
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			return info.GetReason()
		}
	}
	return code.Code(s.Code()).String() // #nosec G115 -- 17 codes
}
