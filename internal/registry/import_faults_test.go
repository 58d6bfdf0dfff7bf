package registry_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// An import whose caller goes, or that the authority or the disk lets down, is
// gone on with by calling it again.
func TestImportIsGoneOnWith(t *testing.T) {
	f := newFixture(t)
	serials := f.signMany(t, "n", 450)
	gone := errors.New("the caller is gone")
	seen := 0
	err := f.Import(self(t), registry.ImportSpec{}, func(done []registry.Imported, total int) error {
		if total != len(serials) {
			t.Errorf("%d in all", total)
		}
		seen += len(done)
		return gone
	})
	if !errors.Is(err, gone) || seen == 0 || seen >= len(serials) {
		t.Fatalf("%d outcomes, %v", seen, err)
	}
	calls := 0
	real := f.options.Signed
	f.options.Signed = signed{real, nil, func(names []node.Certname) ([]ca.Existing, error) {
		if calls++; calls == 3 {
			return nil, node.ErrUnavailable
		}
		return real.Existing(self(t), names)
	}}
	f.restart()
	already := 0
	err = f.Import(self(t), registry.ImportSpec{}, func(done []registry.Imported, _ int) error {
		for _, in := range done {
			if in.Outcome == registry.Already {
				already++
			}
		}
		return nil
	})
	if !errors.Is(err, node.ErrUnavailable) || already != seen {
		t.Errorf("%d already, want %d, %v", already, seen, err)
	}
	f.doImport(t, registry.ImportSpec{})
	for name, serial := range serials {
		f.held(t, name, serial)
	}
	if revoked := f.revoked(t); len(revoked) > 0 {
		t.Errorf("revoked: %v", revoked)
	}
}

// A disk that fills up in the middle of a batch: what was written is reported, and the rest is an error.
func TestImportOnAFullDisk(t *testing.T) {
	f := newFixture(t)
	serials := f.signMany(t, "n", 20)
	full := &fullDisk{Engine: f.engine}
	var err error
	if f.options.Store, err = store.New(self(t), full); err != nil {
		t.Fatal(err)
	}
	f.restart()
	full.room.Store(7)
	written := map[string]registry.Imported{}
	err = f.Import(self(t), registry.ImportSpec{}, func(done []registry.Imported, _ int) error {
		for _, in := range done {
			written[in.Certname] = in
		}
		return nil
	})
	if !errors.Is(err, node.ErrUnavailable) || len(written) != 7 {
		t.Errorf("%d reported, want 7: %v", len(written), err)
	}
	for name := range serials {
		_, err := f.store.Node(self(t), node.Certname(name))
		if in, reported := written[name]; reported != (err == nil) || reported && in.Outcome != registry.Adopted {
			t.Errorf("%s: %v, reported as %+v", name, err, in)
		}
	}
	full.room.Store(100)
	f.doImport(t, registry.ImportSpec{})
	for name, serial := range serials {
		f.held(t, name, serial)
	}
}

// fullDisk has room for some commits.
type fullDisk struct {
	store.Engine
	room atomic.Int64
}

func (d *fullDisk) Commit(ctx context.Context, b store.Batch) (int64, error) {
	if d.room.Add(-1) < 0 {
		return 0, node.ErrUnavailable
	}
	return d.Engine.Commit(ctx, b)
}

// However calls for one name fall together, the certificate that stood there
// stays, is held once, and nothing is revoked.
func TestImportBesideOtherCalls(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	serials := f.signMany(t, "n", 60)
	for name := range serials {
		if strings.HasSuffix(name, "5.test") { // some are registered before
			if _, err := f.Register(self(t), node.Node{Certname: node.Certname(name)}, "", false); err != nil {
				t.Fatal(err)
			}
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	adopted := map[string]int{}
	for range 3 {
		wg.Go(func() {
			err := f.Import(self(t), registry.ImportSpec{}, func(done []registry.Imported, _ int) error {
				mu.Lock()
				defer mu.Unlock()
				for _, in := range done {
					if in.Outcome == registry.Adopted {
						adopted[in.Certname]++
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	for name := range serials {
		wg.Go(func() {
			_, err := f.Provision(self(t), node.Node{Certname: node.Certname(name)}, registry.Spec{}, "", false)
			if !errors.Is(err, node.ErrForeignCertificate) && !errors.Is(err, node.ErrNodeExists) {
				t.Errorf("provision of %s: %v", name, err)
			}
		})
		wg.Go(func() {
			_, err := f.Issue(self(t), node.Certname(name), "", registry.Spec{}, "", false)
			if !errors.Is(err, node.ErrForeignCertificate) && !errors.Is(err, node.ErrCertificateExists) && !errors.Is(err, node.ErrNodeNotFound) {
				t.Errorf("issue for %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	f.drain(t)
	for name, serial := range serials {
		f.held(t, name, serial)
		if adopted[name] != 1 {
			t.Errorf("%s was adopted %d times", name, adopted[name])
		}
	}
	if revoked := f.revoked(t); len(revoked) > 0 {
		t.Errorf("revoked: %v", revoked)
	}
}
