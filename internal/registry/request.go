package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/espm-project/espm/internal/node"
)

// newRequest returns the record of a request id, nil if id is empty. The record has the caller's name, as each
// caller has request ids of its own. A call that uses the id again must have the same content. The content must
// have no sensitive values: a reader of the store could guess them from the hash, even after their removal.
func newRequest(ctx context.Context, n node.Node, id, method string, content ...any) (*node.Request, error) {
	if id == "" {
		return nil, nil
	}
	b, err := json.Marshal(append([]any{method, n.Certname}, content...))
	if err != nil {
		return nil, fmt.Errorf("request %q: %w", id, err)
	}
	sum := sha256.Sum256(b)
	return &node.Request{ID: id, Principal: node.CallerOf(ctx).Name, Hash: hex.EncodeToString(sum[:]), Certname: n.Certname, UID: n.UID, CreatedAt: n.CreatedAt}, nil
}

// earlier returns the registration that an earlier call with the request id made, nil if the id is new. Errors:
// node.ErrRequestReused if that call had other content; node.ErrRequestSpent if the registration is terminated
// or has another owner now.
func (r *registrations) earlier(ctx context.Context, request *node.Request) (*node.Node, error) {
	if request == nil {
		return nil, nil
	}
	was, ok, err := r.store.Request(ctx, request.Key())
	if err == nil && !ok && accessOf(ctx).Role == node.Admin { // a record from before ids had a principal: all callers were admins then
		if was, ok, err = r.store.Request(ctx, request.ID); ok {
			request.Principal = ""
		}
	}
	if err != nil || !ok {
		return nil, err
	}
	if was.Hash != request.Hash {
		return nil, fmt.Errorf("%w: request_id %q was for %q, at %s", node.ErrRequestReused, was.ID, was.Certname, was.CreatedAt.Format("2006-01-02 15:04:05 MST"))
	}
	n, err := r.view.node(ctx, was.Certname)
	if errors.Is(err, node.ErrNodeNotFound) || err == nil && n.UID != was.UID {
		return nil, fmt.Errorf("%w: request_id %q made registration %s of %q", node.ErrRequestSpent, was.ID, was.UID, was.Certname)
	}
	return &n, err
}

// CheckRequestID checks that a request id is printable ASCII of at most 128 bytes, or empty. Error: node.ErrInvalid.
func CheckRequestID(id string) error {
	if len(id) > 128 {
		return node.Invalid("request_id", "at most 128 bytes, has %d", len(id))
	}
	for _, r := range id {
		if r <= ' ' || r > '~' {
			return node.Invalid("request_id", "printable ASCII without spaces only, not %q", r)
		}
	}
	return nil
}
