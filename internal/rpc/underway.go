package rpc

import (
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
	all map[*call]bool
}

// enter adds a call until leave is called.
func (u *underway) enter(c *call) (leave func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.all == nil {
		u.all = map[*call]bool{}
	}
	u.all[c] = true
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.all, c)
	}
}

func (u *underway) calls() []*call {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Collect(maps.Keys(u.all))
}

// String names the methods, each with the number of its calls. A call whose message is still being read has none.
func (u *underway) String() string {
	count := map[string]int{}
	for _, c := range u.calls() {
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
