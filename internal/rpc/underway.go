package rpc

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// Server is a gRPC server with all of espm's services.
type Server struct {
	*grpc.Server
	underway *underway
}

// Shutdown refuses new calls and waits for open calls. After drain, Shutdown ends the contexts and the connections of
// the open calls. After another cut, Shutdown returns an error with the methods of the calls that are still open. The
// goroutines of such calls still run.
func (s *Server) Shutdown(drain, cut time.Duration) error {
	stopped := make(chan struct{})
	go func() { s.GracefulStop(); close(stopped) }()
	select {
	case <-stopped:
		return nil
	case <-time.After(drain):
	}
	go s.Stop()
	select {
	case <-stopped:
		return nil
	case <-time.After(cut):
		return fmt.Errorf("stop: %s did not end within %v after their contexts ended", s.underway, cut)
	}
}

// underway has the open calls. The zero value is ready to use.
type underway struct {
	mu  sync.Mutex
	all map[*call]*openStream // nil if the call is not a stream
}

// enter adds a call until leave is called.
func (u *underway) enter(c *call, s *openStream) (leave func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.all == nil {
		u.all = map[*call]*openStream{}
	}
	u.all[c] = s
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.all, c)
	}
}

func (u *underway) calls() map[*call]*openStream {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.all)
}

// String returns the methods of the open calls, each with a count. A call whose message is still being read is not in
// underway yet.
func (u *underway) String() string {
	count := map[string]int{}
	for c := range u.calls() {
		count[c.method]++
	}
	if len(count) == 0 {
		return "calls whose messages were being read"
	}
	var parts []string
	for _, method := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%s (%d)", method, count[method]))
	}
	return "calls of " + strings.Join(parts, ", ")
}

// openStream checks and ends a stream whose caller's credentials may become invalid.
type openStream struct {
	valid func() error
	end   context.CancelCauseFunc
}

// recheck is the longest time that an idle stream or connection outlives the caller's credentials. Every call, and every
// message of a stream, checks the credentials itself.
const recheck = time.Second

// endInvalid ends streams whose token or certificate is no longer accepted, until ctx is done.
func (e *edge) endInvalid(ctx context.Context) {
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, s := range e.underway.calls() {
			if s == nil {
				continue
			}
			if err := s.valid(); err != nil {
				s.end(err)
			}
		}
	}
}
