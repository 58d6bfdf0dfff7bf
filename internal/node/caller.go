package node

import (
	"context"
	"time"
)

// Role says which methods of the API a principal may call.
type Role string

// The roles.
const (
	Admin       Role = "admin"       // everything
	Provisioner Role = "provisioner" // nodes that it registered, within its Grant
	Reader      Role = "reader"      // looks at everything, changes nothing
)

// Roles are all of them.
var Roles = []Role{Admin, Provisioner, Reader}

// Caller is who has work done, and on what grounds.
type Caller struct {
	// Name is the principal's, unique for ever: "certname:web1.example.com",
	// "token:ci", "local:root", or "espm" for its own work.
	Name   string
	Role   Role
	Peer   string // from where: a network address, or a process on this machine
	Local  bool   // it is known by the local socket, and not by a token
	Method string // of the API, such as "espm.v1.NodeService/ProvisionNode"; empty for espm's own work
	Grant  Grant  // what a provisioner is confined to
}

// self is espm, at work that no call asked for, such as a launch deadline.
var self = Caller{Name: "espm", Role: Admin}

type callerKey struct{}

// WithCaller returns a context of work that is done for a caller. The API's
// edge puts it in every call that it lets in.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// AsSelf returns a context of work that espm does of its own accord. Such work is
// never confined, and the audit log shows it as espm's.
func AsSelf(ctx context.Context) context.Context { return WithCaller(ctx, self) }

// CallerOf returns whom work is done for. The zero Caller, which may do nothing, stands for nobody.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// Grant confines a provisioner. A nil list does not confine, an empty one allows
// nothing; but extensions of the arc 1.3.6.1.4.1.34380.1.3, which Puppet's own
// authorization goes by, must be listed to be allowed.
type Grant struct {
	Names        []string      `json:"names"`        // patterns of certnames; "*" stands for any characters but a dot, "**" for any
	Environments []string      `json:"environments"` // "": none named, which leaves it to the agent
	Groups       []string      `json:"groups"`
	Extensions   []string      `json:"extensions"` // by short name or OID
	MaxTTL       time.Duration `json:"max_ttl,omitempty"`
	// Limits of one principal. 0: the daemon's default.
	RequestsPerSecond float64 `json:"requests_per_second,omitempty"`
	OpenProvisions    int     `json:"open_provisions,omitempty"` // provisions under way at once
}
