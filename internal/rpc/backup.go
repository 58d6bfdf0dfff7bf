package rpc

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// Snapshots makes backups. Errors: node.ErrUnavailable while another backup is under way.
type Snapshots interface {
	Snapshot(ctx context.Context, w io.Writer, privateKey bool) error
}

type backups struct {
	espmv1.UnimplementedBackupServiceServer
	snapshots Snapshots
	audit     *audit.Log
	now       func() time.Time
}

func (s *backups) CreateBackup(req *espmv1.CreateBackupRequest, stream grpc.ServerStreamingServer[espmv1.CreateBackupResponse]) error {
	ctx := stream.Context()
	line := audit.Line(ctx, s.now(), node.ActionBackup)
	if req.GetIncludePrivateKey() {
		if !node.CallerOf(ctx).Local { // a stolen token or certificate must not give access to the CA's key
			return node.NotPermitted("include_private_key", "a backup with private keys is for callers on the local socket without a token: make it on espm's host")
		}
		line.Comment = "with the CA's private key"
	}
	line.Object = "backup"
	if err := s.audit.Record(ctx, line); err != nil {
		return err
	}
	return s.snapshots.Snapshot(ctx, parts{stream}, req.GetIncludePrivateKey())
}

// maxPart is the largest part of a backup in one message, in bytes.
const maxPart = 256 << 10

// parts is an io.Writer that sends the data to a stream.
type parts struct {
	stream grpc.ServerStreamingServer[espmv1.CreateBackupResponse]
}

func (p parts) Write(b []byte) (n int, err error) {
	for n < len(b) {
		end := min(len(b), n+maxPart)
		if err := p.stream.Send(&espmv1.CreateBackupResponse{Data: b[n:end]}); err != nil {
			return n, err
		}
		n = end
	}
	return n, nil
}
