package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/backup"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/site"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
)

// Restored is the result of Restore.
type Restored struct {
	Manifest backup.Manifest
	Store    string               // the path of the store
	CA       string               // the path of the CA folder; "": the backup has none
	Held     directory.Inspection // of the restored CA
	Audit    audit.Verified       // of the audit chain; a flaw in it is older than the backup
	InToken  bool                 // the configuration has the CA's key in a token
	RootKey  string               // path of the root's private key, if only a replaced CA folder has it; else ""
	NewerCRL bool                 // the CRL is newer than the backup's
	Kept     []string             // paths of the replaced files and folders, also those of a killed restore
}

const (
	staged = ".restore-" // suffix of staged files; during the exchange their inode number follows
	before = ".before-restore-"
)

// Restore restores the files of a backup to the paths in the configuration. No daemon may run. Restore
// replaces existing files only if overwrite is set, and keeps them under another name. It first reads and checks the
// whole backup, in files beside the final paths. A failure or a kill up to then changes nothing.
//
// A certificate that was revoked after the backup stays revoked: if the replaced CA folder or a published copy
// has a newer CRL of the same CA, Restore uses that. If the backup has no private key of the CA, and no token has it,
// Restore uses the key in the replaced folder.
func Restore(ctx context.Context, c config.Config, r io.Reader, overwrite bool) (done Restored, err error) {
	t := newRestore(c)
	defer func() { err = errors.Join(err, t.close()) }()
	if err := t.lock(overwrite); err != nil {
		return done, err
	}
	if done.Manifest, err = backup.Read(r, t.stage); err != nil {
		return done, err
	}
	if err := t.check(ctx, &done); err != nil {
		return done, fmt.Errorf("nothing was changed: %w", err)
	}
	if err := t.switchOver(&done); err != nil {
		return done, fmt.Errorf("the restore was not finished, run it again: %w", err)
	}
	return done, nil
}

type restore struct {
	config config.Config
	stamp  string
	store  string
	ca     string // "": none
	hasCA  bool   // the backup has one
	locks  []io.Closer
	locked bool // all locks are locked, so all staged files are of this restore

	replaced []string // the final names of replaced files and folders
	rename   func(from, to string, flags uint) error
}

func newRestore(c config.Config) *restore {
	t := &restore{config: c, stamp: time.Now().UTC().Format("20060102T150405Z"), store: realPath(c.Store.Path), rename: rename}
	if dir := c.Authority.Directory; dir != nil {
		t.ca = realPath(dir.Path)
	}
	return t
}

// realPath returns a path without symbolic links, so that a restore replaces what a link names and not the link.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return filepath.Clean(path)
}

// close removes the staged files, and then unlocks. After that, another restore may stage its
// own files.
func (t *restore) close() error {
	var errs []error
	if t.locked {
		errs = append(errs, t.clear())
	}
	return errors.Join(append(errs, t.unlock())...)
}

func (t *restore) unlock() error {
	var errs []error
	for _, l := range t.locks {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// lock locks out daemons and other restores. If a store or a CA folder exists, it is an error unless overwrite is
// set.
func (t *restore) lock(overwrite bool) error {
	existing, err := t.lockExisting()
	if err != nil {
		return err
	}
	if len(existing) > 0 && !overwrite {
		return fmt.Errorf("already there: %s; nothing was changed; --overwrite replaces them, and keeps the old ones under another name", strings.Join(existing, " and "))
	}
	for _, path := range t.places() {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return err
		}
	}
	// The folder is locked too, as the locks of the replaced files do not protect the new ones.
	folder := filepath.Dir(t.store)
	if err := t.flock(folder, os.O_RDONLY, "another restore is running in "+folder); err != nil {
		return err
	}
	t.locked = true
	return t.clear() // after a killed restore
}

func (t *restore) lockExisting() (existing []string, err error) {
	if site.Exists(t.store) {
		existing = append(existing, t.store)
		if err := t.flock(t.store, os.O_RDWR, fmt.Sprintf("store %s is in use: stop espm first", t.store)); err != nil {
			return nil, err
		}
	}
	if t.ca != "" && site.Exists(t.ca) {
		existing = append(existing, t.ca)
		l, err := directory.Lock(t.ca)
		if err != nil {
			return nil, err
		}
		t.locks = append(t.locks, l)
	}
	return existing, nil
}

// flock locks a file or a folder. inUse is the error if another process has locked it.
func (t *restore) flock(path string, flag int, inUse string) error {
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return err
	}
	t.locks = append(t.locks, f)
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return errors.New(inUse)
	case err != nil:
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}

// places returns the paths to restore, the CA first.
func (t *restore) places() []string {
	if t.ca == "" {
		return []string{t.store}
	}
	return []string{t.ca, t.store}
}

// clear removes the staged files, and settles unfinished exchanges.
func (t *restore) clear() error {
	var errs []error
	for _, path := range t.places() {
		errs = append(errs, t.settle(path), os.RemoveAll(path+staged))
	}
	_, err := durable.RemoveStale(filepath.Dir(t.store), func(name string) bool { return name == filepath.Base(t.store+staged) })
	return errors.Join(append(errs, err)...)
}

// stage writes one file of the backup to a name beside its final path.
func (t *restore) stage(f backup.File, r io.Reader) error {
	copied := func(w io.Writer) error { _, err := io.Copy(w, r); return err }
	switch rel, isCA := strings.CutPrefix(f.Name, backup.CAFolder); {
	case f.Name == backup.StoreName:
		return durable.WriteStream(t.store+staged, f.Mode, copied)
	case isCA && t.ca == "":
		return errors.New("the backup has a CA folder, but the configuration has no authority.directory to restore it to")
	case isCA:
		t.hasCA = true
		path := filepath.Join(t.ca+staged, filepath.FromSlash(rel))
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return err
		}
		return durable.WriteStream(path, ownerOnly(f.Mode), copied)
	}
	return nil // Restore does not write the configuration
}

// ownerOnly removes the group's permissions from a file that others may not read, such as a
// key. The restored file gets the folder's group, which may not be allowed to read secrets.
func ownerOnly(mode fs.FileMode) fs.FileMode {
	if mode&0o004 == 0 {
		return mode & 0o700
	}
	return mode
}

// check checks the staged files, and compares them with the manifest.
func (t *restore) check(ctx context.Context, done *Restored) error {
	if err := withStore(ctx, t.store+staged, func(r *bolt.Reader, v store.View) error { return checkStore(ctx, r, v, done) }); err != nil {
		return err
	}
	if t.ca == "" {
		return nil
	}
	return t.checkCA(done)
}

// checkStore checks every page of the store and the audit chain, and counts the records.
func checkStore(ctx context.Context, r *bolt.Reader, v store.View, done *Restored) (err error) {
	if err := r.Check(); err != nil {
		return err
	}
	if done.Audit, err = audit.Walk(ctx, v, nil); err != nil {
		return err
	}
	revision, records, err := count(ctx, v)
	if err != nil {
		return err
	}
	if m := done.Manifest; revision != m.Revision || !maps.Equal(records, m.Records) {
		return fmt.Errorf("the store has revision %d and the records %v, the backup says %d and %v", revision, records, m.Revision, m.Records)
	}
	return nil
}

func (t *restore) checkCA(done *Restored) (err error) {
	if !t.hasCA {
		return errors.New("the configuration has authority.directory, but the backup has no CA folder: it was made with Puppet Server's own CA")
	}
	if done.NewerCRL, err = t.newerCRL(); err != nil {
		return err
	}
	done.InToken = t.config.Authority.Directory.Key != ""
	key, next := filepath.Join(t.ca, "ca_key.pem"), filepath.Join(t.ca+staged, "ca_key.pem")
	if !done.InToken && !site.Exists(next) && site.Exists(key) {
		data, err := os.ReadFile(key)
		if err == nil {
			err = durable.OS.WriteFile(next, data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	done.Held, err = directory.Inspect(t.ca+staged, done.InToken)
	return err
}

func (t *restore) newerCRL() (bool, error) {
	others := append([]string{filepath.Join(t.ca, "ca_crl.pem")}, t.config.Authority.Directory.Publish...)
	data, err := directory.NewestCRL(t.ca+staged, others...)
	if err != nil || data == nil {
		return false, err
	}
	return true, durable.OS.WriteFile(filepath.Join(t.ca+staged, "ca_crl.pem"), data, 0o644)
}

// Records formats the counts of a backup's records, sorted by kind.
func Records(records map[string]int) string {
	var words []string
	for _, kind := range slices.Sorted(maps.Keys(records)) {
		words = append(words, fmt.Sprintf("%s %d", kind, records[kind]))
	}
	return strings.Join(words, ", ")
}
