package daemon

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// reportEvery is how often the log has the progress of a migration.
const reportEvery = 10 * time.Second

// migrate migrates the store to the current schema. Meanwhile the ENC answers from records of both
// versions, and the API does not serve.
func (d *daemon) migrate(ctx context.Context) error {
	outdated, err := d.store.Outdated(ctx)
	if err != nil || !outdated {
		return err
	}
	working, done := context.WithCancel(ctx)
	defer done()
	go d.supervisor.askForTime(working)
	var reported time.Time
	err = d.store.Migrate(ctx, store.Migration{
		Before: func(version int) error { return d.keepStore(ctx, version) },
		Progress: func(version int, step string, batches int) {
			if time.Since(reported) < reportEvery {
				return
			}
			reported = time.Now()
			d.log.WithFields(logrus.Fields{"schema": version, "step": step, "batches": batches}).Info("the store is being migrated; the ENC is answered, the API not yet")
			d.supervisor.tell(fmt.Sprintf("STATUS=migrating the store to schema version %d: %s", version, step))
		},
	})
	if err != nil {
		return fmt.Errorf("store %s: %w", d.config.Store.Path, err)
	}
	d.log.Info("the store is up to date")
	d.supervisor.tell("STATUS=")
	return nil
}

// keepStore copies the store before a migration, into the same folder. With the copy, the operator can go back to the
// older espm. keepStore returns an error if the file system has no room for the copy and for the store's growth.
func (d *daemon) keepStore(ctx context.Context, version int) error {
	path := d.config.Store.Path
	size, err := d.engine.Size()
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &fs); err != nil {
		return fmt.Errorf("%s: %w", filepath.Dir(path), err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < 2*size { // #nosec G115 -- no file system has so many blocks
		return fmt.Errorf("%w: %s has %d MiB free, and the migration of %s needs %d MiB: make room and start espm again; nothing is changed",
			node.ErrUnavailable, filepath.Dir(path), free>>20, path, 2*size>>20)
	}
	kept := fmt.Sprintf("%s.schema%d", path, version)
	if err := durable.WriteStream(kept, 0o600, func(w io.Writer) error { return d.engine.Snapshot(ctx, w) }); err != nil {
		return err
	}
	d.log.WithFields(logrus.Fields{"path": kept, "schema": version}).Info("the store is kept as it was before the migration")
	return nil
}
