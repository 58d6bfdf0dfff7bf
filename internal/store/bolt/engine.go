// Package bolt is the store engine on one bbolt file, the default of a single
// machine. The file is readable with any bbolt tool:
//
//	kv       key -> revision in decimal, a space, the value
//	history  revision, 8 bytes big endian -> the keys changed, one a line: +"key" put, -"key" deleted
//	meta     format -> version of this layout; revision -> the newest revision
//
// One process at a time may have the file open for writing. While none has, any number of processes may read it
// (OpenReader).
//
// The package is linked into espm-enc, which Puppet Server starts for every catalog. So it imports nothing that slows
// the start of a process, such as a logger.
package bolt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	bbolt "go.etcd.io/bbolt"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// ErrLocked marks the error of an attempt to open a file that another process has open.
var ErrLocked = errors.New("locked by another process")

// Options of Open. The zero value is suitable for production.
type Options struct {
	Timeout time.Duration // how long to wait for the file's lock; default 5 s
	History int           // revisions kept for watches; default 10,000
	Mode    os.FileMode   // of a new file, independent of the umask; default 0640

	// Committed, if not nil, is called after each transaction, before its callers get their answers.
	// batches is the number of applied batches, took includes the sync. Committed must not block.
	Committed func(batches int, took time.Duration, err error)
}

func (o Options) withDefaults() Options {
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.History <= 0 {
		o.History = 10_000
	}
	if o.Committed == nil {
		o.Committed = func(int, time.Duration, error) {}
	}
	if o.Mode == 0 {
		o.Mode = 0o640
	}
	return o
}

// Engine is a store.Engine on a bbolt file. All methods may be called concurrently.
//
// A commit is durable when Commit returns: bbolt has synced the data pages, and then the meta page that
// refers to them. After a failure (disk full, I/O error) the engine still serves reads. Commits succeed
// again as soon as the disk works. A damaged page fails only the reads that need it. A commit that needs a
// damaged page panics, as no process may write to such a file.
type Engine struct {
	path    string
	db      *bbolt.DB
	file    *os.File // the file that bbolt has open; see settle
	history int64
	told    func(batches int, took time.Duration, err error)

	// Tests inject faults here. The defaults are db.Update and file.Sync.
	update func(func(*bbolt.Tx) error) error
	sync   func() error

	// Every read transaction has a read lock on reads; see settle.
	reads sync.RWMutex

	mu      sync.Mutex
	wake    *sync.Cond // signalled when queue grows or closing is set
	queue   []*request
	closing bool
	changed chan struct{} // closed and replaced after each change of the revision

	fan *fan // distributes events to the watches

	unsettled bool          // used only by the committer; see settle
	inDoubt   []*request    // used only by the committer: the requests of the unsettled transaction
	committed chan struct{} // closed when the committer has ended
	closed    chan struct{} // closed when Close has begun
	closeErr  error
	closeOnce sync.Once
}

var _ store.Engine = (*Engine)(nil)

// Open opens the store at path. Open creates the file, but not the folder. If another process has the file
// open, Open waits for Timeout. Then the error wraps ErrLocked and, if possible, names that process. Open
// refuses a file that is no store, is damaged or was written by a newer espm, and does not change it.
func Open(path string, opts Options) (*Engine, error) {
	opts = opts.withDefaults()
	if err := create(path, opts.Mode); err != nil {
		return nil, fmt.Errorf("create store %s: %w", path, err)
	}
	db, file, err := openFile(path, opts.Timeout, false)
	if errors.Is(err, ErrLocked) {
		err = fmt.Errorf("%w: %s (waited %s)", err, describeHolder(path), opts.Timeout)
	}
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	e := &Engine{
		path:      path,
		db:        db,
		file:      file,
		history:   int64(opts.History),
		told:      opts.Committed,
		update:    db.Update,
		sync:      file.Sync,
		changed:   make(chan struct{}),
		committed: make(chan struct{}),
		closed:    make(chan struct{}),
	}
	e.wake = sync.NewCond(&e.mu)
	e.fan = newFan(e)
	go e.commitLoop()
	go e.fan.run()
	return e, nil
}

// Close answers the queued commits, then releases the file. Later calls and all watches get an error that
// wraps node.ErrUnavailable.
func (e *Engine) Close() error {
	e.closeOnce.Do(func() {
		e.mu.Lock()
		e.closing = true
		e.wake.Signal()
		e.mu.Unlock()
		<-e.committed
		close(e.closed)
		<-e.fan.ended
		if err := e.db.Close(); err != nil {
			e.closeErr = fmt.Errorf("close store %s: %w", e.path, err)
		}
	})
	return e.closeErr
}

// Get implements store.Reader.
func (e *Engine) Get(ctx context.Context, key string) (store.Record, error) {
	return get(ctx, e.view, key)
}

// List implements store.Reader. List keeps a read transaction open while it reads, so a large limit delays
// the reuse of pages.
func (e *Engine) List(ctx context.Context, prefix, after string, limit int) ([]store.Record, int64, error) {
	return list(ctx, e.view, prefix, after, limit)
}

// view runs fn in a read transaction.
func (e *Engine) view(fn func(*bbolt.Tx) error) error {
	e.reads.RLock()
	defer e.reads.RUnlock()
	return view(e.db, e.path, fn)
}

// Size returns the size of the file in bytes.
func (e *Engine) Size() (int64, error) {
	info, err := os.Stat(e.path)
	if err != nil {
		return 0, fmt.Errorf("store: %w", err)
	}
	return info.Size(), nil
}

func (e *Engine) errClosed() error {
	return fmt.Errorf("store %s is closed: %w", e.path, node.ErrUnavailable)
}
