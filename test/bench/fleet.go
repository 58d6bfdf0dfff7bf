package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
)

// certname returns the certname of the i-th node of a store.
func certname(i int) string { return fmt.Sprintf("node-%06d.prod.example.com", i) }

// newNode returns a typical node of a fleet: three classes, four parameters, and the two groups of
// fleetGroups.
func newNode(name string) node.Node {
	now := time.Now().UTC()
	return node.Node{
		Certname: node.Certname(name),
		UID:      node.UID(uuid.Must(uuid.NewV7()).String()),
		State:    node.Registered,
		Classification: node.Classification{
			Environment: "production",
			Classes: map[string]map[string]any{
				"apache":        {"port": json.Number("8080"), "mpm_module": "worker"},
				"profile::base": nil,
				"ntp":           {"servers": []any{"0.pool.example.com", "1.pool.example.com"}},
			},
			Parameters: map[string]any{
				"role": "web", "datacenter": "fra1", "owner": "team-checkout", "tier": json.Number("2"),
			},
		},
		Groups:    []string{"linux", "web"},
		CreatedAt: now,
		UpdatedAt: now,
	}
}

func fleetGroups() []node.Group {
	now := time.Now().UTC()
	group := func(name string, c node.Classification) node.Group {
		return node.Group{Name: name, Classification: c, CreatedAt: now, UpdatedAt: now}
	}
	return []node.Group{
		group("linux", node.Classification{
			Classes:    map[string]map[string]any{"ssh": {"permit_root_login": false}, "sudo": nil},
			Parameters: map[string]any{"monitored": true},
		}),
		group("web", node.Classification{
			Classes:    map[string]map[string]any{"firewall": {"ports": []any{json.Number("80"), json.Number("443")}}},
			Parameters: map[string]any{"log_host": "logs.example.com"},
		}),
	}
}

// populate adds nodes to a store that no daemon has open.
func populate(ctx context.Context, path string, nodes int) (err error) {
	const batch = 2000
	engine, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	s, err := store.New(ctx, engine)
	if err != nil {
		return err
	}
	if err := addGroups(ctx, s, fleetGroups()); err != nil {
		return err
	}
	for first := 0; first < nodes; first += batch {
		c := store.NewChange()
		c.Unaudited()
		for i := first; i < min(first+batch, nodes); i++ {
			c.PutNode(nil, newNode(certname(i)))
		}
		if _, err := s.Commit(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func addGroups(ctx context.Context, s *store.Store, groups []node.Group) error {
	for _, g := range groups {
		mark, err := s.GroupsMark(ctx)
		if err != nil {
			return err
		}
		c := store.NewChange()
		c.Unaudited()
		c.PutGroup(mark, nil, g)
		if _, err := s.Commit(ctx, c); err != nil {
			return err
		}
	}
	return nil
}
