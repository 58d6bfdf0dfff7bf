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

// Restored tells what Restore did.
type Restored struct {
	Manifest backup.Manifest
	Store    string               // where it is now
	CA       string               // the same; "": the backup has none
	Held     directory.Inspection // of the CA
	Audit    audit.Verified       // of the audit chain; a flaw was in it when the backup was made
	InToken  bool                 // the CA's key is to be in a token
	RootKey  string               // the root's private key, which is only in what was kept; "": it is not
	NewerCRL bool                 // the CRL is not that of the backup: there was a newer one of the same CA
	Kept     []string             // what stood before is there now; also what a restore that was killed had replaced
}

const (
	staged = ".restore-" // what is on its way in; in its turn, the number of its inode follows
	before = ".before-restore-"
)

// Restore puts a backup where the configuration says. No daemon may run. What stands there is not
// replaced unless overwrite says so, and kept under another name then. Before anything is replaced all of the
// backup was read and proven, beside its place: a failure, or a kill, up to there changes nothing.
//
// A certificate that was revoked after the backup stays revoked: where a newer CRL of the
// same CA is found, in the CA's folder or at a published copy, it is taken. So is the CA's private key,
// from the folder that is replaced, where the backup has none and no token has it.
func Restore(ctx context.Context, c config.Config, r io.Reader, overwrite bool) (done Restored, err error) {
	t := newRestore(c)
	defer func() { err = errors.Join(err, t.close()) }()
	if err := t.take(overwrite); err != nil {
		return done, err
	}
	if done.Manifest, err = backup.Read(r, t.stage); err != nil {
		return done, err
	}
	if err := t.prove(ctx, &done); err != nil {
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
	mine   bool // all locks are held: what is staged is of this restore
	kept   []string
	rename func(from, to string, flags uint) error
}

func newRestore(c config.Config) *restore {
	t := &restore{config: c, stamp: time.Now().UTC().Format("20060102T150405Z"), store: c.Store.Path, rename: rename}
	if dir := c.Authority.Directory; dir != nil {
		t.ca = filepath.Clean(dir.Path)
	}
	return t
}

// close gives the locks free, and removes what was staged before that, as another restore may
// stage its own from then on.
func (t *restore) close() error {
	var errs []error
	if t.mine {
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

// take makes sure that no daemon runs, and none starts, on what stands there, that it may be replaced,
// and that no other restore is under way, also where nothing stands.
func (t *restore) take(overwrite bool) error {
	stand, err := t.lockStanding()
	if err != nil {
		return err
	}
	if len(stand) > 0 && !overwrite {
		return fmt.Errorf("already there: %s; nothing was changed; --overwrite replaces them, and keeps what they are under another name", strings.Join(stand, " and "))
	}
	for _, path := range t.places() {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return err
		}
	}
	// A lock on what stands goes aside with it; the folder's stays until the end.
	folder := filepath.Dir(t.store)
	if err := t.flock(folder, os.O_RDONLY, "another restore is under way in "+folder); err != nil {
		return err
	}
	t.mine = true
	return t.clear() // of a restore that was killed
}

func (t *restore) lockStanding() (stand []string, err error) {
	if site.Exists(t.store) {
		stand = append(stand, t.store)
		if err := t.flock(t.store, os.O_RDWR, fmt.Sprintf("store %s is in use: stop espm first", t.store)); err != nil {
			return nil, err
		}
	}
	if t.ca != "" && site.Exists(t.ca) {
		stand = append(stand, t.ca)
		l, err := directory.Lock(t.ca)
		if err != nil {
			return nil, err
		}
		t.locks = append(t.locks, l)
	}
	return stand, nil
}

// flock locks a file or a folder; where somebody else has it locked, held is the error.
func (t *restore) flock(path string, flag int, held string) error {
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return err
	}
	t.locks = append(t.locks, f)
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return errors.New(held)
	case err != nil:
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}

// places are what is restored, the CA first.
func (t *restore) places() []string {
	if t.ca == "" {
		return []string{t.store}
	}
	return []string{t.ca, t.store}
}

// clear removes what was staged, and keeps what stood.
func (t *restore) clear() error {
	var errs []error
	for _, path := range t.places() {
		errs = append(errs, t.settle(path), os.RemoveAll(path+staged))
	}
	_, err := durable.RemoveStale(filepath.Dir(t.store), func(name string) bool { return name == filepath.Base(t.store+staged) })
	return errors.Join(append(errs, err)...)
}

// stage writes one file of the backup beside its place.
func (t *restore) stage(f backup.File, r io.Reader) error {
	copied := func(w io.Writer) error { _, err := io.Copy(w, r); return err }
	switch rel, isCA := strings.CutPrefix(f.Name, backup.CAFolder); {
	case f.Name == backup.StoreName:
		return durable.WriteStream(t.store+staged, f.Mode, copied)
	case isCA && t.ca == "":
		return errors.New("the backup has a CA folder, and the configuration has no authority.directory to put it")
	case isCA:
		t.hasCA = true
		path := filepath.Join(t.ca+staged, filepath.FromSlash(rel))
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return err
		}
		return durable.WriteStream(path, ownersAlone(f.Mode), copied)
	}
	return nil // the configuration, which is the operator's
}

// ownersAlone takes the group's rights from a file that is not for everybody, such as a
// key: it gets the folder's group, which may be no group that keeps secrets.
func ownersAlone(mode fs.FileMode) fs.FileMode {
	if mode&0o004 == 0 {
		return mode & 0o700
	}
	return mode
}

// prove opens what was staged and compares it with what the backup says of itself.
func (t *restore) prove(ctx context.Context, done *Restored) error {
	if err := withStore(ctx, t.store+staged, func(r *bolt.Reader, v store.View) error { return prove(ctx, r, v, done) }); err != nil {
		return err
	}
	if t.ca == "" {
		return nil
	}
	return t.proveCA(done)
}

// prove looks at every page of the store, walks the audit chain in it, and counts its records.
func prove(ctx context.Context, r *bolt.Reader, v store.View, done *Restored) (err error) {
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

func (t *restore) proveCA(done *Restored) (err error) {
	if !t.hasCA {
		return errors.New("the configuration has authority.directory, but the backup no CA folder: it was made with Puppet Server's own CA")
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

// Records puts the counts of a backup into words, in order of kind.
func Records(records map[string]int) string {
	var words []string
	for _, kind := range slices.Sorted(maps.Keys(records)) {
		words = append(words, fmt.Sprintf("%s %d", kind, records[kind]))
	}
	return strings.Join(words, ", ")
}
