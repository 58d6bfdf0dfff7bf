package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/espm-project/espm/internal/node"
)

// currentSchema is the version of keys and records that this program writes.
var currentSchema = len(migrations)

// migrations[i] are the steps that bring a store from schema version i to i+1.
var migrations = [][]step{
	{}, // 0: an empty store
	{ // 1: a registration had one live certificate, and sets of groups were not known
		listSerials(nodePrefix), listSerials(tombstonesPrefix),
		{"sets of groups", indexSets}, {"marks of groups", removeGroupUse},
	},
}

// step changes records of one kind, in batches, while others read and write the store. After a crash it continues
// after the last batch.
type step struct {
	name string
	// batch returns the changes of the records after the key after, within the store's bounds, and the last key of
	// these records; empty if no record is left. It guards each record that it depends on, as others write meanwhile.
	batch func(ctx context.Context, s *Store, after string) (b Batch, last string, err error)
}

// schema is the record of the store's version. It has the new version from the first step on: an older espm must not
// write to a store with records that it does not know.
type schema struct {
	Version   int       `json:"version"`
	Migrating *position `json:"migrating,omitempty"`
	revision  int64
}

// position is the progress of the steps to a version.
type position struct {
	Step  int    `json:"step"`
	After string `json:"after"`
}

// readSchema returns version 0 for an empty store.
func readSchema(ctx context.Context, r Reader) (schema, error) {
	rec, err := r.Get(ctx, schemaKey)
	if errors.Is(err, ErrNoKey) {
		return schema{}, nil
	}
	if err != nil {
		return schema{}, err
	}
	s := schema{revision: rec.Revision}
	if err := json.Unmarshal(rec.Value, &s); err != nil || s.Version < 1 {
		return schema{}, fmt.Errorf("the store's schema record is damaged: %q", rec.Value)
	}
	return s, nil
}

// check refuses a schema that this program does not know.
func (s schema) check(known int) error {
	if s.Version > known {
		return fmt.Errorf("the store has schema version %d, this espm knows up to %d: use a newer espm", s.Version, known)
	}
	return nil
}

// Migration has the callbacks of Migrate.
type Migration struct {
	// Before is called before the first change, with the version that the store has. An error
	// ends the migration. It is not called again where an earlier process began.
	Before func(version int) error
	// Progress is told of each batch: the version to come, the step, and the batches of it so far.
	Progress func(version int, step string, batches int)
}

// Outdated reports whether Migrate has something to do.
func (s *Store) Outdated(ctx context.Context) (bool, error) {
	have, err := readSchema(ctx, s.engine)
	return have.Version < currentSchema || have.Migrating != nil, err
}

// Migrate brings the store up to date. Others may read and write it meanwhile. What is
// done is durable batch by batch: after a crash, or when ctx is done, the next call goes on from there.
func (s *Store) Migrate(ctx context.Context, m Migration) error {
	return s.migrate(ctx, m, migrations)
}

func (s *Store) migrate(ctx context.Context, m Migration, versions [][]step) error {
	have, err := readSchema(ctx, s.engine)
	if err != nil {
		return err
	}
	if err := have.check(len(versions)); err != nil {
		return err
	}
	for have.Version < len(versions) || have.Migrating != nil {
		if have.Migrating == nil {
			if m.Before != nil {
				if err := m.Before(have.Version); err != nil {
					return fmt.Errorf("before the store is brought from schema version %d to %d: %w", have.Version, have.Version+1, err)
				}
			}
			have.Version, have.Migrating = have.Version+1, &position{}
			if err := s.putSchema(ctx, &have, Batch{}); err != nil {
				return err
			}
		}
		if err := s.steps(ctx, m, &have, versions[have.Version-1]); err != nil {
			return err
		}
	}
	return nil
}

// steps does the remaining steps to a version.
func (s *Store) steps(ctx context.Context, m Migration, have *schema, steps []step) error {
	batches := 0
	for at := have.Migrating; at.Step < len(steps); {
		one := steps[at.Step]
		b, last, err := one.batch(ctx, s, at.After)
		if err != nil {
			return fmt.Errorf("bringing the store to schema version %d: %s after %q: %w", have.Version, one.name, at.After, err)
		}
		next := position{at.Step, last}
		if last == "" {
			next.Step++
		}
		was := *at
		have.Migrating = &next
		switch err := s.putSchema(ctx, have, b); {
		case errors.Is(err, node.ErrStale) && ctx.Err() == nil: // another writer changed one of the records
			have.Migrating = &was
			if err := s.reread(ctx, have); err != nil {
				return err
			}
		case err != nil:
			return fmt.Errorf("bringing the store to schema version %d: %s after %q: %w", have.Version, one.name, was.After, err)
		}
		if batches++; m.Progress != nil {
			m.Progress(have.Version, one.name, batches)
		}
		at = have.Migrating
	}
	have.Migrating = nil
	return s.putSchema(ctx, have, Batch{})
}

// reread checks that no other process migrates the same store.
func (s *Store) reread(ctx context.Context, have *schema) error {
	now, err := readSchema(ctx, s.engine)
	if err == nil && now.revision != have.revision {
		err = errors.New("another process changes the store's schema")
	}
	return err
}

// putSchema commits the schema with a batch. No watch gets an event, as the records' meaning does not change.
func (s *Store) putSchema(ctx context.Context, have *schema, b Batch) error {
	b.Guards = append(b.Guards, Guard{schemaKey, have.revision})
	b.Puts = append(b.Puts, Put{schemaKey, encode(have)})
	b.Unwatched = true
	revision, err := s.commit(ctx, b)
	if err == nil {
		have.revision = revision
	}
	return err
}
