package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// currentSchema is the version of keys and records that this program writes.
var currentSchema = len(migrations)

// migrations[i] brings a store from schema version i to i+1. Each must be safe to run
// again, as a crash may come between it and the commit of the new version.
var migrations = []migration{
	func(context.Context, Engine) error { return nil }, // 0: an empty store
	indexSets,
}

type migration func(context.Context, Engine) error

type schema struct {
	Version int `json:"version"`
}

func schemaVersion(ctx context.Context, r Reader) (int, error) {
	rec, err := r.Get(ctx, schemaKey)
	if errors.Is(err, ErrNoKey) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var s schema
	if err := json.Unmarshal(rec.Value, &s); err != nil || s.Version < 1 {
		return 0, fmt.Errorf("the store's schema record is damaged: %q", rec.Value)
	}
	return s.Version, nil
}

func schemaError(version int) error {
	if version > currentSchema {
		return fmt.Errorf("the store has schema version %d, this espm knows up to %d: use a newer espm", version, currentSchema)
	}
	return fmt.Errorf("the store has schema version %d, older than this program's %d: start `espm serve` once to bring it up to date", version, currentSchema)
}

func migrate(ctx context.Context, e Engine, steps []migration) error {
	version, err := schemaVersion(ctx, e)
	if err != nil {
		return err
	}
	if version > len(steps) {
		return schemaError(version)
	}
	for ; version < len(steps); version++ {
		if err := steps[version](ctx, e); err != nil {
			return fmt.Errorf("bringing the store from schema version %d to %d: %w", version, version+1, err)
		}
		put := Put{schemaKey, encode(schema{version + 1})}
		if _, err := storeOf(e).commit(ctx, Batch{Puts: []Put{put}}); err != nil {
			return fmt.Errorf("writing schema version %d: %w", version+1, err)
		}
	}
	return nil
}
