package rpc

import (
	"context"
	"io"

	"google.golang.org/grpc"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// Snapshots makes backups. Errors: node.ErrUnavailable while another is under way.
type Snapshots interface {
	Snapshot(ctx context.Context, w io.Writer, privateKey bool) error
}

// RegisterBackup has a server hand out backups; to be called before it serves.
func RegisterBackup(s *grpc.Server, snapshots Snapshots) {
	espmv1.RegisterBackupServiceServer(s, &backups{snapshots: snapshots})
}

type backups struct {
	espmv1.UnimplementedBackupServiceServer
	snapshots Snapshots
}

func (s *backups) CreateBackup(req *espmv1.CreateBackupRequest, stream grpc.ServerStreamingServer[espmv1.CreateBackupResponse]) error {
	return s.snapshots.Snapshot(stream.Context(), parts{stream}, req.GetIncludePrivateKey())
}

// maxPart is how much of a backup one message holds.
const maxPart = 256 << 10

// parts sends what is written.
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
