package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/backup"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/snapshot"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) backupCmd() *cobra.Command {
	return noun("backup", "Make and restore backups", a.backupCreateCmd(), a.backupRestoreCmd())
}

func (a *app) backupCreateCmd() *cobra.Command {
	var key bool
	c := &cobra.Command{
		Use:   "create FILE|DIR",
		Short: "Make a backup of a running espm",
		Long: `Writes a tar archive with mode 0600 to FILE, or to a new file in DIR. The archive has a consistent
snapshot of the store, the configuration and, with a CA of espm's own, the CA's folder. The archive is
checked before it replaces an existing FILE.

Private keys in the CA's folder are left out without --private-key. Guard a backup with private keys
like the keys themselves. A key in a PKCS #11 token is in no backup.`,
		Example: `  espm backup create /var/backups/
  espm backup create espm.tar --private-key`,
		Args: args("FILE|DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := args[0]
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				path = filepath.Join(path, "espm-backup-"+time.Now().UTC().Format("20060102T150405Z")+".tar")
			}
			return a.call(func(conn *grpc.ClientConn) error {
				stream, err := espmv1.NewBackupServiceClient(conn).CreateBackup(cmd.Context(), &espmv1.CreateBackupRequest{IncludePrivateKey: key})
				if err != nil {
					return err
				}
				m, sum, err := receive(path, stream)
				if err != nil {
					return err
				}
				if a.encoded() {
					return a.whole(map[string]any{
						"path": path, "sha256": sum, "files": len(m.Files), "revision": m.Revision, "records": m.Records, "private_keys": m.Keys,
					})
				}
				if a.output == "name" {
					return a.names(path)
				}
				fmt.Fprintf(a.stdout, "%s\nSHA-256 %s, %d files, store at revision %d: %s\n", path, sum, len(m.Files), m.Revision, snapshot.Records(m.Records))
				a.backedUpKeys(m)
				return nil
			})
		},
	}
	c.Flags().BoolVar(&key, "private-key", false, "include the CA's private keys")
	return c
}

func (a *app) backedUpKeys(m backup.Manifest) {
	if len(m.Keys) > 0 {
		fmt.Fprintf(a.stdout, "It holds private keys: %s. Whoever has a CA's can make certificates: keep it like them.\n", strings.Join(m.Keys, ", "))
	}
	switch {
	case m.PrivateKey || m.Authority != "directory":
	case m.KeyInToken:
		fmt.Fprintln(a.stdout, "It does not hold the key that the CA signs with: a token has it, and gives it to no backup.")
	default:
		fmt.Fprintln(a.stdout, "It does not hold the CA's private key: keep that elsewhere, or use --private-key.")
	}
}

// receive writes a backup to path. The file appears only if the archive is complete and verified.
func receive(path string, stream grpc.ServerStreamingClient[espmv1.CreateBackupResponse]) (m backup.Manifest, sum string, err error) {
	incoming := &incoming{stream: stream, sum: sha256.New()}
	err = durable.WriteStream(path, 0o600, func(w io.Writer) (err error) {
		m, err = backup.Read(io.TeeReader(incoming, w), func(backup.File, io.Reader) error { return nil })
		if incoming.failed != nil {
			return incoming.failed // it says more than the archive's error, which is only that the archive is cut short
		}
		return err
	})
	if incoming.failed != nil {
		return m, "", incoming.failed
	}
	return m, hex.EncodeToString(incoming.sum.Sum(nil)), err
}

// incoming is the stream as an io.Reader.
type incoming struct {
	stream grpc.ServerStreamingClient[espmv1.CreateBackupResponse]
	sum    hash.Hash
	rest   []byte
	failed error
}

func (i *incoming) Read(p []byte) (int, error) {
	for len(i.rest) == 0 {
		part, err := i.stream.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				i.failed = err
			}
			return 0, err
		}
		i.rest = part.GetData()
	}
	n := copy(p, i.rest)
	i.sum.Write(i.rest[:n])
	i.rest = i.rest[n:]
	return n, nil
}

func (a *app) backupRestoreCmd() *cobra.Command {
	var file string
	var overwrite bool
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup where the configuration says",
		Long: `Puts the store and the CA's folder of a backup where the configuration says. Stop the daemon
first. The command checks the whole backup before it changes anything, and prints the head of the audit chain.

With --overwrite it replaces an existing store and CA folder, and keeps them under another name. It
keeps a newer CRL of the same CA, from the CA folder or from a published copy: a certificate that was revoked since
the backup stays revoked. It does not restore the configuration: 'tar -xOf FILE espm.yaml' shows it.`,
		Example: `  systemctl stop espm
  espm backup restore /var/backups/espm-backup-20261126T120000Z.tar --overwrite`,
		Args: args("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := config.Load(file)
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			done, err := snapshot.Restore(cmd.Context(), c, f, overwrite)
			if err != nil {
				return err
			}
			a.restored(done)
			return nil
		},
	}
	c.Flags().StringVar(&file, "config", config.DefaultFile, "configuration file")
	c.Flags().BoolVar(&overwrite, "overwrite", false, "replace an existing store and CA folder, and keep them under another name")
	return c
}

func (a *app) restored(done snapshot.Restored) {
	m := done.Manifest
	fmt.Fprintf(a.stdout, "store %s: revision %d, %s\n", done.Store, m.Revision, snapshot.Records(m.Records))
	if done.CA != "" {
		which := "of the backup"
		if done.NewerCRL {
			which = "newer than the backup's: what was revoked since stays revoked"
		}
		fmt.Fprintf(a.stdout, "CA %s: %s, CRL number %s with %d entries, %s\n", done.CA, done.Held.Subject, done.Held.CRL.Number, done.Held.CRL.Entries, which)
		key := filepath.Join(done.CA, "ca_key.pem")
		switch {
		case done.InToken:
			fmt.Fprintln(a.stdout, "The CA's private key is in the token of authority.directory.key: espm looks at its start whether it is this CA's.")
			if done.Held.Key {
				fmt.Fprintf(a.stdout, "%s came with the backup, and is not needed: take it off this machine.\n", key)
			}
		case !done.Held.Key:
			fmt.Fprintf(a.stdout, "The CA's private key is not there: put it to %s, mode 0600 and of the user that espm runs as, before espm is started.\n", key)
		}
	}
	a.restoredAudit(done.Audit)
	for _, kept := range done.Kept {
		fmt.Fprintf(a.stdout, "kept: %s\n", kept)
	}
	if done.RootKey != "" {
		fmt.Fprintf(a.stdout, "The root's private key was not restored, it is in %s: keep it elsewhere before you remove that.\n", done.RootKey)
	}
	fmt.Fprintf(a.stdout, "The backup is of %s, by espm %s. What happened since is not in it.\n", m.CreatedAt.Format(time.RFC3339), m.Version)
}

func (a *app) restoredAudit(v audit.Verified) {
	head := audit.Anchor{Seq: v.Head.Seq, Hash: v.Head.Hash}
	switch {
	case v.Flaw != nil:
		fmt.Fprintf(a.stderr, "espm: audit: THE CHAIN IS NOT WHOLE, as it was in the backup: %v; head %s\n", v.Flaw, head)
	case v.Head.Seq == 0:
		fmt.Fprintln(a.stdout, "audit: the chain has no line yet")
	default:
		fmt.Fprintf(a.stdout, "audit: the chain is whole, %d lines, head %s\n", v.Lines, head)
	}
}
