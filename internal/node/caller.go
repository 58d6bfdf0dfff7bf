package node

import (
	"context"
	"reflect"
	"time"
)

// Role says which methods of the API a principal may call.
type Role string

// The roles.
const (
	Admin       Role = "admin"       // everything
	Provisioner Role = "provisioner" // nodes that it registered, within its Grant
	Reader      Role = "reader"      // reads everything, changes nothing
)

// Roles are all roles.
var Roles = []Role{Admin, Provisioner, Reader}

// Caller is the principal that work is done for, with its role and grant.
type Caller struct {
	// Name is the principal's, unique for ever: "certname:web1.example.com",
	// "token:ci", "local:root", or "espm" for its own work.
	Name   string
	Role   Role
	Peer   string // a network address, or a process on this machine
	Local  bool   // known by the local socket, and not by a token
	Method string // of the API, such as "espm.v1.NodeService/ProvisionNode"; empty for espm's own work
	Grant  Grant  // limits of a provisioner
}

// Same reports whether two callers are the same principal with the same role and grant.
func (c Caller) Same(as Caller) bool {
	return c.Name == as.Name && c.Role == as.Role && reflect.DeepEqual(c.Grant, as.Grant) // a list without a limit is no empty list
}

// self is the caller of work that no call asked for, such as a launch deadline.
var self = Caller{Name: "espm", Role: Admin}

type callerKey struct{}

// WithCaller returns a context for work that is done for a caller. The gate sets it for every call that it admits.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// AsSelf returns a context for work that espm does for itself. Such work is never confined, and the audit log shows
// it as espm's.
func AsSelf(ctx context.Context) context.Context { return WithCaller(ctx, self) }

// CallerOf returns the caller that work is done for. If there is none, it returns the zero Caller, which may do nothing.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// Grant limits a provisioner. A nil list sets no limit; an empty list allows nothing. Extensions of the arc
// 1.3.6.1.4.1.34380.1.3, by which Puppet grants rights, must always be listed.
type Grant struct {
	Names        []string      `json:"names"`        // patterns of certnames; "*" stands for any characters but a dot, "**" for any
	Environments []string      `json:"environments"` // "" allows a node without an environment, which the agent then chooses
	Groups       []string      `json:"groups"`
	Extensions   []string      `json:"extensions"` // by short name or OID; with =VALUE for that value alone
	MaxTTL       time.Duration `json:"max_ttl,omitempty"`
	// Limits of one principal. 0: the daemon's default.
	RequestsPerSecond float64 `json:"requests_per_second,omitempty"`
	OpenProvisions    int     `json:"open_provisions,omitempty"` // provisions at the same time
}
