package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/bolt"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const (
	heirs        = 1_000_000 // nodes that inherit the group
	heirRoles    = 250       // each inherits the group; every tenth overrides its parameter
	heirSites    = 200       // with the roles: 50,000 distinct sets of groups
	heirsOwn     = 20        // every 20th node has its own values
	groupUpdates = 15
	quietTurn    = 300 * time.Millisecond

	updateGoal = 300 * time.Millisecond
	waitGoal   = 10 * time.Millisecond
)

// benchGroups updates a group that a large fleet inherits. During the update, it registers nodes in the
// same sets of groups.
func benchGroups(ctx context.Context, l lab, _ options) (err error) {
	d, err := l.initialize(ctx, "groups")
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := populateHeirs(ctx, d.store()); err != nil {
		return err
	}
	fmt.Printf("\nUpdating a group that %d nodes inherit, in %d distinct sets of groups, every %dth with values of its own (written in %.0f s)\n",
		heirs, heirRoles*heirSites, heirsOwn, time.Since(begin).Seconds())
	if err := d.start(ctx); err != nil {
		return errors.Join(err, d.stop())
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	conn, err := d.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	joining := joiner{nodes: espmv1.NewNodeServiceClient(conn)}
	groups := espmv1.NewGroupServiceClient(conn)
	var updates, alone, beside []time.Duration
	for round := range groupUpdates {
		quiet, err := joining.until(ctx, time.After(quietTurn))
		if err != nil {
			return err
		}
		alone = append(alone, quiet...)

		done := make(chan time.Time)
		failed := make(chan error, 1)
		go func() {
			defer close(done)
			begin := time.Now()
			failed <- updateBase(ctx, groups, round)
			updates = append(updates, time.Since(begin))
		}()
		during, err := joining.until(ctx, done)
		if err := errors.Join(err, <-failed); err != nil {
			return err
		}
		beside = append(beside, during...)
	}
	report := func(what string, times []time.Duration) time.Duration {
		slices.Sort(times)
		last := len(times) - 1
		fmt.Printf("%-36s %6d times, median %s, p99 %s, longest %s\n", what, len(times),
			milliseconds(times[last/2]), milliseconds(times[last*99/100]), milliseconds(times[last]))
		return times[last]
	}
	report("UpdateGroup", updates)
	longest := report("RegisterNode, alone", alone)
	wait := report("RegisterNode, beside UpdateGroup", beside) - longest
	middle := updates[(len(updates)-1)/2]
	goal("median update, seconds", middle.Seconds(), middle <= updateGoal)
	goal("the longest registration is longer than alone by, milliseconds", wait.Seconds()*1000, wait <= waitGoal)
	return nil
}

func updateBase(ctx context.Context, groups espmv1.GroupServiceClient, round int) error {
	_, err := groups.UpdateGroup(ctx, &espmv1.UpdateGroupRequest{
		Group: &espmv1.Group{Name: "base", Classification: &espmv1.Classification{
			Parameters: map[string]*structpb.Value{"log_host": structpb.NewStringValue(fmt.Sprintf("logs%d.example.com", round))},
		}},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"classification.parameters"}},
	})
	return err
}

// joiner registers one node after the other, in sets of groups that already have nodes.
type joiner struct {
	nodes espmv1.NodeServiceClient
	next  int
}

// until returns the duration of each registration until stop fires.
func (j *joiner) until(ctx context.Context, stop <-chan time.Time) (times []time.Duration, err error) {
	for {
		select {
		case <-stop:
			return times, nil
		default:
		}
		n := heir(heirs + j.next)
		j.next++
		begin := time.Now()
		_, err := j.nodes.RegisterNode(ctx, &espmv1.RegisterNodeRequest{Node: &espmv1.Node{Certname: string(n.Certname), Groups: n.Groups}})
		if err != nil {
			return nil, err
		}
		times = append(times, time.Since(begin))
	}
}

// heir returns the i-th node.
func heir(i int) node.Node {
	set := i % (heirRoles * heirSites)
	n := newNode(fmt.Sprintf("heir-%07d.prod.example.com", i))
	n.Groups = []string{heirRole(set % heirRoles), heirSite(set / heirRoles)}
	n.Classification = node.Classification{}
	if i%heirsOwn == 0 {
		n.Classification.Parameters = map[string]any{"log_host": "own.example.com", "rack": strconv.Itoa(i % 40)}
	}
	return n
}

func heirRole(i int) string { return fmt.Sprintf("role-%03d", i) }
func heirSite(i int) string { return fmt.Sprintf("site-%03d", i) }

func heirGroups() []node.Group {
	groups := []node.Group{{Name: "base", Classification: node.Classification{Parameters: map[string]any{"log_host": "logs.example.com"}}}}
	for i := range heirRoles {
		g := node.Group{Name: heirRole(i), Parents: []string{"base"}, Classification: node.Classification{
			Classes: map[string]map[string]any{"profile::" + fmt.Sprintf("role%03d", i): {"workers": "8"}},
		}}
		if i%10 == 0 {
			g.Classification.Parameters = map[string]any{"log_host": "role.example.com"}
		}
		groups = append(groups, g)
	}
	for i := range heirSites {
		groups = append(groups, node.Group{Name: heirSite(i), Classification: node.Classification{Parameters: map[string]any{"datacenter": heirSite(i)}}})
	}
	return groups
}

// populateHeirs fills a store that no daemon has open.
func populateHeirs(ctx context.Context, path string) (err error) {
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
	if err := addGroups(ctx, s, heirGroups()); err != nil {
		return err
	}
	for first := 0; first < heirs; first += batch {
		c := store.NewChange()
		c.Unaudited()
		for i := first; i < first+batch; i++ {
			c.PutNode(nil, heir(i))
		}
		if _, err := s.Commit(ctx, c); err != nil {
			return err
		}
	}
	return nil
}
