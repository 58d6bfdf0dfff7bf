package crash

import (
	"testing"

	"github.com/espm-project/espm/internal/node"
)

// subject identifies lines to count: an action and a serial or a uid.
type subject struct {
	action node.Action
	of     string
}

// checkAudit checks the chain, and that each change in the store has one line. It
// returns the number of lines by action and serial, and by action and uid.
func checkAudit(t *testing.T, w *world) map[subject]int {
	t.Helper()
	v, err := w.audit.Verify(node.AsSelf(t.Context()), nil)
	if err != nil || v.Flaw != nil {
		t.Fatalf("the audit log: %+v, %v", v, err)
	}
	lines, ids := map[subject]int{}, map[string]bool{}
	err = w.audit.Export(node.AsSelf(t.Context()), 0, func(page []node.SealedLine) error {
		for _, l := range page {
			if ids[l.ID] {
				t.Errorf("line %d is there twice: %+v", l.Seq, l)
			}
			ids[l.ID] = true
			if l.Outcome != node.OutcomeOK {
				continue
			}
			lines[subject{l.Action, string(l.Serial)}]++
			lines[subject{l.Action, string(l.UID)}]++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	one := func(action node.Action, of string) {
		t.Helper()
		if n := lines[subject{action, of}]; n != 1 {
			t.Errorf("%d lines %q of %s, want one", n, action, of)
		}
	}
	for after := ""; ; {
		page, err := w.store.Certificates(node.AsSelf(t.Context()), after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range page.Items {
			issued, settled := lines[subject{node.ActionIssue, string(c.Serial)}], lines[subject{node.ActionSettle, string(c.Serial)}]
			if issued+settled+lines[subject{node.ActionImport, string(c.Serial)}] != 1 {
				t.Errorf("certificate %s has %d lines of its issue and %d of its settling, want one in all", c.Serial, issued, settled)
			}
			if c.Receipt != nil {
				one(node.ActionReceipt, string(c.Serial))
			}
		}
		if after = page.Next; after == "" {
			break
		}
	}
	for after := ""; ; {
		page, err := w.store.Nodes(node.AsSelf(t.Context()), noFilter, after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range page.Items {
			if lines[subject{node.ActionImport, string(n.UID)}] == 0 {
				one(node.ActionProvision, string(n.UID))
			}
			if lines[subject{node.ActionTerminate, string(n.UID)}] != 0 {
				t.Errorf("%s lives, and has a line that it was terminated", n.Certname)
			}
		}
		if after = page.Next; after == "" {
			break
		}
	}
	return lines
}
