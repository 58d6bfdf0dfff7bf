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

// Shutdown refuses new calls and waits for those under way. After drain it ends their contexts and their connections.
// After another cut it returns an error that names the calls which ignored that end. Their goroutines still run then.
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

// underway has the calls that were let in and have not ended. The zero value has none.
type underway struct {
	mu  sync.Mutex
	all map[*call]*openStream // nil where the call is no stream
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

// String names the methods, each with the number of its calls. A call whose message is still being read has none.
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

// openStream is what ends a stream whose opener is not let in any more.
type openStream struct {
	valid func() error
	end   context.CancelCauseFunc
}

// recheck is how long a stream or a connection may outlive the credentials that it was opened with, while it
// carries nothing. A call, and a message of a stream, look by themselves.
const recheck = time.Second

// endInvalid ends streams whose token or certificate holds no more, until ctx is done.
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
