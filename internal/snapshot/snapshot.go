// Package snapshot makes backups of a running store and its CA, and restores a backup while
// no daemon runs. internal/backup has the format.
package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/backup"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	"github.com/espm-project/espm/internal/version"
)

// Maker makes backups while the daemon runs.
type Maker struct {
	config config.Config
	engine Engine
	one    sync.Mutex
}

// Engine copies a consistent state of the store.
type Engine interface {
	Snapshot(ctx context.Context, w io.Writer) error
}

// NewMaker returns a Maker for the engine's store.
func NewMaker(c config.Config, e Engine) *Maker { return &Maker{config: c, engine: e} }

const (
	backupLimit = time.Hour // ends the backup of a client that does not read
	spoolName   = ".backup-"
)

// Snapshot writes a backup. It first copies the store, in the store's folder, so that a slow client
// does not block the store. The CA folder comes after the store: so the CRL has every revocation
// that the store has a receipt of. Errors: node.ErrNotPermitted for a caller that is no admin, as a backup has
// everybody's records, and node.ErrUnavailable while another backup is under way.
func (s *Maker) Snapshot(ctx context.Context, w io.Writer, privateKey bool) error {
	if node.CallerOf(ctx).Role != node.Admin {
		return node.NotPermitted("", "only an admin may make a backup")
	}
	if !s.one.TryLock() {
		return fmt.Errorf("%w: another backup is under way", node.ErrUnavailable)
	}
	defer s.one.Unlock()
	ctx, cancel := context.WithTimeout(ctx, backupLimit)
	defer cancel()
	if err := s.snapshot(ctx, w, privateKey); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return ctx.Err()
}

func (s *Maker) snapshot(ctx context.Context, w io.Writer, privateKey bool) (err error) {
	m := backup.Manifest{CreatedAt: time.Now().UTC().Truncate(time.Second), Version: version.Read().Version, Authority: "puppetserver"}
	spool, err := s.spool(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, spool.Close(), os.Remove(spool.Name())) }()
	err = withStore(ctx, spool.Name(), func(_ *bolt.Reader, v store.View) (err error) {
		m.Revision, m.Records, err = count(ctx, v)
		return err
	})
	if err != nil {
		return err
	}
	dir := s.config.Authority.Directory
	if dir != nil {
		m.Authority, m.KeyInToken = "directory", dir.Key != ""
	}
	out := backup.NewWriter(w, m)
	if s.config.File != "" {
		if err := addFile(out, backup.ConfigName, s.config.File, nil); err != nil {
			return err
		}
	}
	info, err := spool.Stat()
	if err != nil {
		return err
	}
	if err := out.Add(backup.StoreName, 0o640, info.Size(), spool); err != nil {
		return err
	}
	if dir != nil {
		if err := addCA(ctx, out, dir.Path, privateKey); err != nil {
			return err
		}
	}
	return out.Close()
}

// RemoveStale removes the copies of the store that a killed process left. The caller must have
// locked the store.
func RemoveStale(store string) (int, error) {
	stale, err := beside(store, spoolName)
	for _, file := range stale {
		err = errors.Join(err, os.Remove(file))
	}
	return len(stale), err
}

// spool copies the store to a temporary file.
func (s *Maker) spool(ctx context.Context) (*os.File, error) {
	pattern := s.config.Store.Path + spoolName
	f, err := os.CreateTemp(filepath.Dir(pattern), filepath.Base(pattern)+"*") // with mode 0600
	if err != nil {
		return nil, fmt.Errorf("%w: %w", node.ErrUnavailable, err)
	}
	err = s.engine.Snapshot(ctx, f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", node.ErrUnavailable, err), f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}

// withStore opens a store, which no process uses, for one call of do.
func withStore(ctx context.Context, path string, do func(r *bolt.Reader, v store.View) error) (err error) {
	r, err := bolt.OpenReader(path, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	v, err := store.NewView(ctx, r)
	if err != nil {
		return err
	}
	return do(r, v)
}

// count counts all records of a store, by kind.
func count(ctx context.Context, v store.View) (revision int64, records map[string]int, err error) {
	if revision, err = v.Revision(ctx); err != nil {
		return 0, nil, err
	}
	records, err = v.Counts(ctx)
	return revision, records, err
}

// caOrder is the order of the CA's files in a backup. A file that names others comes after them, so that the backup
// has all that it names. The CRL comes last, so that it is the newest.
var caOrder = []string{"inventory.txt", "espm_crl_number", "ca_crl.pem"}

func addCA(ctx context.Context, out *backup.Writer, dir string, privateKey bool) error {
	err := caFiles(ctx, dir, "", func(rel string) error {
		if slices.Contains(caOrder, rel) {
			return nil
		}
		return addCAFile(out, dir, rel, privateKey)
	})
	for _, name := range caOrder {
		if err == nil {
			err = addCAFile(out, dir, name, privateKey)
		}
	}
	return err
}

// caFiles calls visit with the path of each file of a CA folder, below the folder. Old sites have symbolic links: to the
// folder itself, to single files, and to folders in it such as signed/. Their content belongs to the backup. A link in
// a linked folder is followed to a file only, so that there is an end.
func caFiles(ctx context.Context, dir, below string, visit func(rel string) error) error {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist) && path != root: // revoked or removed meanwhile
			return nil
		case err != nil:
			return err
		case strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "espm.lock":
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.Join(below, rel)
		mode := d.Type()
		if mode&fs.ModeSymlink != 0 {
			info, err := os.Stat(path)
			if err != nil { // it leads nowhere
				return nil
			}
			if mode = info.Mode().Type(); mode.IsDir() && below == "" {
				return caFiles(ctx, path, rel, visit)
			}
		}
		if !mode.IsRegular() {
			return nil
		}
		return visit(rel)
	})
}

func addCAFile(out *backup.Writer, dir, rel string, privateKey bool) error {
	name, isKey := backup.CAFolder+filepath.ToSlash(rel), false
	err := addFile(out, name, filepath.Join(dir, rel), func(data []byte) bool {
		isKey = bytes.Contains(data, []byte("PRIVATE KEY-----"))
		return privateKey || !isKey
	})
	if err == nil && isKey && privateKey {
		out.Manifest.Keys = append(out.Manifest.Keys, name)
		out.Manifest.PrivateKey = out.Manifest.PrivateKey || name == backup.CAKeyName
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// addFile adds a file, unless want refuses it. It reads the file at once, as the file may change.
func addFile(out *backup.Writer, name, path string, want func([]byte) bool) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil || want != nil && !want(data) {
		return err
	}
	return out.Add(name, info.Mode(), int64(len(data)), bytes.NewReader(data))
}
