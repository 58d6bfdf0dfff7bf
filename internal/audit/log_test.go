package audit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
	"github.com/espm-project/espm/internal/store/enginetest"
)

func TestMain(m *testing.M) { enginetest.Main(m) }

// rig is a log over a real store, whose clock the test sets.
type rig struct {
	*audit.Log
	store  *store.Store
	engine store.Engine
	now    time.Time
	disk   sync.Mutex // the disk of the store hangs while it is locked
}

func newRig(t *testing.T, o audit.Options) *rig {
	t.Helper()
	r := &rig{now: time.Date(2026, 1, 2, 3, 4, 5, 678_901_000, time.UTC)}
	r.engine = enginetest.Open(t, func(int, time.Duration, error) {
		r.disk.Lock()
		defer r.disk.Unlock()
	})
	var err error
	if r.store, err = store.New(t.Context(), r.engine); err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	o.Log, o.Now = log, func() time.Time { return r.now }
	r.Log = audit.New(r.store, o)
	return r
}

// do commits a change with a line.
func (r *rig) do(t *testing.T, name string) {
	t.Helper()
	n := node.Node{Certname: node.Certname(name), UID: node.UID("uid-" + name)}
	c := store.NewChange()
	c.PutNode(nil, n)
	c.Audit(audit.OfNode(node.AsSelf(t.Context()), r.now, node.ActionRegister, n))
	if _, err := r.store.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) seal(t *testing.T) node.AuditHead {
	t.Helper()
	if err := r.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r.head(t)
}

func (r *rig) head(t *testing.T) node.AuditHead {
	t.Helper()
	head, err := r.store.AuditHead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return head
}

func (r *rig) list(t *testing.T, f audit.Filter) []node.SealedLine {
	t.Helper()
	lines, _, err := r.List(node.AsSelf(t.Context()), f, 0, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func (r *rig) verify(t *testing.T, expect *audit.Anchor) audit.Verified {
	t.Helper()
	v, err := r.Verify(node.AsSelf(t.Context()), expect)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The log has the lines of all owners: a caller without a role, and a provisioner, read none of them.
func TestWhoMayRead(t *testing.T) {
	r := newRig(t, audit.Options{})
	r.do(t, "web1.test")
	for _, role := range []node.Role{"", "new", node.Provisioner, node.Reader, node.Admin} {
		ctx := node.WithCaller(t.Context(), node.Caller{Name: "token:ci", Role: role})
		if role == "" {
			ctx = t.Context()
		}
		lines, _, listed := r.List(ctx, audit.Filter{}, 0, 1)
		exported := r.Export(ctx, 0, func([]node.SealedLine) error { return nil })
		_, verified := r.Verify(ctx, nil)
		for what, err := range map[string]error{"list": listed, "export": exported, "verify": verified} {
			if may := role == node.Reader || role == node.Admin; may != (err == nil) || !may && !errors.Is(err, node.ErrNotPermitted) {
				t.Errorf("role %q: %s: %d lines, %v", role, what, len(lines), err)
			}
		}
	}
}

// Every change has one line, in the order of the changes, also where many come at once, and while it is sealed.
func TestEveryChangeIsOneLine(t *testing.T) {
	r := newRig(t, audit.Options{})
	const callers, each = 8, 50
	sealing, stop := context.WithCancel(t.Context())
	sealed := make(chan error, 1)
	go func() {
		var errs []error
		for sealing.Err() == nil {
			errs = append(errs, r.Seal(context.Background()))
		}
		sealed <- errors.Join(errs...)
	}()
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				r.do(t, fmt.Sprintf("n%d-%d.test", c, i))
			}
		})
	}
	wg.Wait()
	stop()
	if err := <-sealed; err != nil {
		t.Fatal(err)
	}
	seen := map[node.Certname]int{}
	for _, l := range r.list(t, audit.Filter{}) {
		seen[l.Certname]++
		n, err := r.store.Node(t.Context(), l.Certname)
		if err != nil || n.Revision != l.Revision || l.Principal != "espm" || l.Outcome != "ok" {
			t.Errorf("line %+v of node %+v, %v", l, n, err)
		}
	}
	if len(seen) != callers*each || r.head(t).Seq != callers*each {
		t.Errorf("%d nodes in %d lines", len(seen), r.head(t).Seq)
	}
	if v := r.verify(t, nil); v.Flaw != nil || v.Lines != callers*each {
		t.Errorf("%+v", v)
	}
	if left, _, err := r.store.NewLines(t.Context(), 1); err != nil || len(left) > 0 {
		t.Errorf("left: %+v, %v", left, err)
	}
}

// A change that leaves no line is refused, and so is one whose line says too little.
func TestUnauditedChange(t *testing.T) {
	r := newRig(t, audit.Options{})
	c := store.NewChange()
	c.PutNode(nil, node.Node{Certname: "a.test"})
	if _, err := r.store.Commit(t.Context(), c); err == nil || !strings.Contains(err.Error(), "no audit line") {
		t.Errorf("got %v", err)
	}
	c.Audit(node.AuditLine{ID: "x"})
	if _, err := r.store.Commit(t.Context(), c); err == nil {
		t.Error("a line without an action is taken")
	}
	if _, err := r.store.Node(t.Context(), "a.test"); !errors.Is(err, node.ErrNodeNotFound) {
		t.Errorf("it was committed: %v", err)
	}
}

// Text from outside is bounded and on one line, wherever it comes in.
func TestBounded(t *testing.T) {
	r := newRig(t, audit.Options{})
	long := strings.Repeat("ä", 5000)
	line := audit.Line(node.WithCaller(t.Context(), node.Caller{Name: "p\x00\n" + long, Peer: "\xff" + long}), r.now, node.ActionRead)
	line.Comment, line.RequestID = long, "a\nb"
	if err := r.Record(t.Context(), line); err != nil {
		t.Fatal(err)
	}
	r.Refuse(line, "INVALID"+long)
	for _, l := range r.list(t, audit.Filter{}) {
		if len(l.Principal) > 256 || len(l.Peer) > 256 || len(l.Comment) > 1024 || len(l.Outcome) > 256 ||
			!strings.HasPrefix(l.Principal, "p??ä") || !strings.HasPrefix(l.Peer, "?ä") || l.RequestID != "a?b" {
			t.Errorf("%+v", l)
		}
	}
	if v := r.verify(t, nil); v.Flaw != nil || v.Lines != 2 {
		t.Errorf("%+v", v)
	}
}

func TestFilters(t *testing.T) {
	r := newRig(t, audit.Options{})
	t0 := r.now
	for i := range 30 {
		r.do(t, fmt.Sprintf("n%02d.test", i))
		r.now = r.now.Add(time.Minute)
	}
	r.Refuse(audit.Line(node.WithCaller(t.Context(), node.Caller{Name: "token:ci", Role: node.Reader}), r.now, node.ActionTerminate), "PERMISSION_DENIED")
	for _, tt := range []struct {
		f    audit.Filter
		want int
	}{
		{audit.Filter{}, 31},
		{audit.Filter{Principal: "token:ci"}, 1},
		{audit.Filter{Outcome: "PERMISSION_DENIED"}, 1},
		{audit.Filter{Outcome: "ok"}, 30},
		{audit.Filter{Action: node.ActionRegister}, 30},
		{audit.Filter{Certname: "n07.test"}, 1},
		{audit.Filter{UID: "uid-n08.test"}, 1},
		{audit.Filter{UID: "uid-n08.test", Certname: "n07.test"}, 0},
		{audit.Filter{Since: t0.Add(20 * time.Minute)}, 11},
		{audit.Filter{Until: t0.Add(20 * time.Minute)}, 20},
	} {
		if got := r.list(t, tt.f); len(got) != tt.want {
			t.Errorf("%+v: %d lines, want %d", tt.f, len(got), tt.want)
		}
	}
	var paged []int64
	for before, more := int64(0), true; more; more = before != 0 {
		lines, next, err := r.List(node.AsSelf(t.Context()), audit.Filter{Outcome: "ok"}, before, 7)
		if err != nil || len(lines) > 7 {
			t.Fatal(len(lines), err)
		}
		for _, l := range lines {
			paged = append(paged, l.Seq)
		}
		before = next
	}
	for i, seq := range paged {
		if seq != int64(30-i) {
			t.Fatalf("pages give %d", paged)
		}
	}
	if len(paged) != 30 {
		t.Errorf("pages give %d", paged)
	}
}

// Lines leave from the oldest, what is left verifies, and that they left is a line.
func TestPrune(t *testing.T) {
	r := newRig(t, audit.Options{Keep: 48 * time.Hour})
	for i := range 10 {
		r.do(t, fmt.Sprintf("old%d.test", i))
	}
	noted := r.seal(t)
	r.now = r.now.Add(23 * time.Hour)
	if err := r.Prune(t.Context()); err != nil || r.head(t).Base != 0 {
		t.Errorf("pruned early: %+v, %v", r.head(t), err)
	}
	r.now = r.now.Add(26 * time.Hour)
	r.do(t, "new.test")
	r.seal(t)
	if err := r.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	head := r.head(t)
	if head.Base != 10 || head.BaseHash != noted.Hash || head.Seq != 12 {
		t.Errorf("%+v", head)
	}
	if v := r.verify(t, nil); v.Flaw != nil || v.Lines != 2 {
		t.Errorf("%+v", v)
	}
	lines := r.list(t, audit.Filter{})
	if len(lines) != 2 || lines[0].Action != node.ActionPrune || lines[0].Comment != "lines 1 to 10, for their age" {
		t.Errorf("%+v", lines)
	}
	if v := r.verify(t, &audit.Anchor{Seq: 10, Hash: noted.Hash}); v.Flaw != nil {
		t.Errorf("against the base: %+v", v)
	}
	if v := r.verify(t, &audit.Anchor{Seq: 10, Hash: audit.Genesis}); v.Flaw == nil {
		t.Error("another base passes")
	}
	if _, err := r.Verify(node.AsSelf(t.Context()), &audit.Anchor{Seq: 3, Hash: noted.Hash}); err == nil {
		t.Error("what is gone is vouched for")
	}
}

func TestPruneForSize(t *testing.T) {
	r := newRig(t, audit.Options{MaxBytes: 20_000})
	for i := range 100 {
		r.do(t, fmt.Sprintf("n%d.test", i))
	}
	if head := r.seal(t); head.Bytes < 30_000 {
		t.Fatalf("%+v", head)
	}
	if err := r.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	head := r.head(t)
	if head.Bytes > 20_000 || head.Bytes < 16_000 || head.Base == 0 {
		t.Errorf("%+v", head)
	}
	recs, err := r.store.AuditLines(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, rec := range recs {
		size += rec.Size
	}
	if size != head.Bytes {
		t.Errorf("%d bytes, the head says %d", size, head.Bytes)
	}
	if v := r.verify(t, nil); v.Flaw != nil {
		t.Errorf("%+v", v)
	}
	if err := r.Prune(t.Context()); err != nil || r.head(t) != head {
		t.Errorf("pruned for nothing: %+v, %v", r.head(t), err)
	}
}

// A flood of refused calls is summed up, and one caller's does not hide another's.
func TestFlood(t *testing.T) {
	r := newRig(t, audit.Options{})
	refuse := func(name string, role node.Role, peer string) {
		ctx := node.WithCaller(t.Context(), node.Caller{Name: name, Role: role, Peer: peer})
		r.Refuse(audit.Line(ctx, r.now, node.ActionTerminate), "UNAUTHENTICATED")
	}
	for i := range 5000 {
		refuse("anonymous", "", fmt.Sprintf("192.0.2.1:%d", i))
	}
	for i := range 5000 {
		refuse("anonymous", "", fmt.Sprintf("[2001:db8::%x]:9", i))
	}
	refuse("token:ci", node.Provisioner, "192.0.2.2:5")
	if head := r.seal(t); head.Seq != 61 {
		t.Errorf("%d lines at once, want 60 of strangers and one of the token's", head.Seq)
	}
	if got := r.list(t, audit.Filter{Principal: "token:ci"}); len(got) != 1 {
		t.Errorf("the token's: %+v", got)
	}
	r.now = r.now.Add(time.Minute)
	if head := r.seal(t); head.Seq > 61+17 {
		t.Errorf("%d lines", head.Seq)
	}
	var told int64
	for _, l := range r.list(t, audit.Filter{Outcome: "UNAUTHENTICATED"}) {
		told += max(1, l.Count)
		if l.Count > 0 && (l.Action != node.ActionManyRefused || l.Since.IsZero()) {
			t.Errorf("%+v", l)
		}
		if l.Peer == "192.0.2.1" && l.Count != 4990 {
			t.Errorf("%+v", l)
		}
	}
	if told != 10_001 {
		t.Errorf("%d calls are told of, want 10001", told)
	}
}

// What is refused while the store can't write is written later, and not more than there is room for.
func TestRefusedWhileTheStoreFails(t *testing.T) {
	r := newRig(t, audit.Options{})
	r.Refuse(audit.Line(node.AsSelf(t.Context()), r.now, node.ActionTerminate), "PERMISSION_DENIED")
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := r.Seal(stopped); err == nil {
		t.Fatal("sealed with a context that is done")
	}
	if head := r.seal(t); head.Seq != 1 {
		t.Errorf("%+v", head)
	}
}

// A step that was in doubt is in the chain once: its lines of refused calls, of which there is no
// record, are neither lost nor there twice.
func TestStepInDoubt(t *testing.T) {
	r := newRig(t, audit.Options{})
	r.Refuse(audit.Line(node.AsSelf(t.Context()), r.now, node.ActionRegister), "refused")
	r.store.Bound = 300 * time.Millisecond
	r.disk.Lock()
	for range 2 {
		if err := r.Seal(t.Context()); !errors.Is(err, store.ErrUnknownOutcome) {
			t.Errorf("while the disk hangs: got %v, want ErrUnknownOutcome", err)
		}
	}
	r.disk.Unlock()
	r.store.Bound = time.Minute
	r.do(t, "a.test")
	if head := r.seal(t); head.Seq != 2 {
		t.Errorf("the chain has %d lines, want 2", head.Seq)
	}
	if v := r.verify(t, nil); v.Flaw != nil || v.Lines != 2 {
		t.Errorf("%+v", v)
	}
}
