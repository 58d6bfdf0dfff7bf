package audit_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

const linePrefix = "audit/line/"

func key(seq int) string { return fmt.Sprintf("%s%019d", linePrefix, seq) }

// tampered is what an intruder does to the file, past espm.
type tampered struct {
	puts    map[string]string
	deletes []string
}

func (r *rig) record(t *testing.T, key string) string {
	t.Helper()
	rec, err := r.engine.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(rec.Value)
}

func TestTampering(t *testing.T) {
	alter := func(r *rig, t *testing.T, seq int, from, to string) tampered {
		text := r.record(t, key(seq))
		if !strings.Contains(text, from) {
			t.Fatalf("%q is not in %s", from, text)
		}
		return tampered{puts: map[string]string{key(seq): strings.Replace(text, from, to, 1)}}
	}
	for name, tt := range map[string]struct {
		do   func(*rig, *testing.T) tampered
		want int64 // the first bad line
		why  string
	}{
		"a name altered":     {func(r *rig, t *testing.T) tampered { return alter(r, t, 610, "n609.test", "n700.test") }, 610, "altered"},
		"a time altered":     {func(r *rig, t *testing.T) tampered { return alter(r, t, 3, "05.678901Z", "05.678902Z") }, 3, "altered"},
		"an outcome altered": {func(r *rig, t *testing.T) tampered { return alter(r, t, 1, `"outcome":"ok"`, `"outcome":"INVALID"`) }, 1, "altered"},
		"a revision altered": {func(r *rig, t *testing.T) tampered { return alter(r, t, 620, `"revision":`, `"revision":1`) }, 620, "altered"},
		"the last altered with its hash": {func(r *rig, t *testing.T) tampered {
			return tampered{puts: map[string]string{key(620): rehashed(t, r.record(t, key(620)))}}
		}, 620, "not that of the chain's head"},
		"one altered with its hash": {func(r *rig, t *testing.T) tampered {
			return tampered{puts: map[string]string{key(600): rehashed(t, r.record(t, key(600)))}}
		}, 601, "does not continue"},
		"no JSON": {func(r *rig, t *testing.T) tampered { return tampered{puts: map[string]string{key(5): "{"}} }, 5, "damaged"},
		"removed": {func(r *rig, t *testing.T) tampered { return tampered{deletes: []string{key(501)}} }, 501, "missing"},
		"the first removed": {func(r *rig, t *testing.T) tampered {
			return tampered{deletes: []string{key(1)}}
		}, 1, "missing"},
		"the tail removed": {func(r *rig, t *testing.T) tampered {
			return tampered{deletes: []string{key(619), key(620)}}
		}, 619, "missing"},
		"exchanged": {func(r *rig, t *testing.T) tampered {
			return tampered{puts: map[string]string{key(10): r.record(t, key(11)), key(11): r.record(t, key(10))}}
		}, 10, "says that it is line 11"},
		"inserted": {func(r *rig, t *testing.T) tampered {
			return tampered{puts: map[string]string{key(10) + "x": r.record(t, key(10))}}
		}, 11, "says that it is line 10"},
		"appended": {func(r *rig, t *testing.T) tampered {
			return tampered{puts: map[string]string{key(621): r.record(t, key(620))}}
		}, 621, "behind the chain's head"},
		"prepended": {func(r *rig, t *testing.T) tampered {
			return tampered{puts: map[string]string{key(0): r.record(t, key(1))}}
		}, 1, "says that it is line 1"},
		"the head's hash": {func(r *rig, t *testing.T) tampered {
			return tampered{puts: map[string]string{"audit/head": fmt.Sprintf(`{"seq":620,"hash":%q,"base":0,"base_hash":%q}`, audit.Genesis, audit.Genesis)}}
		}, 620, "head"},
		"no head": {func(r *rig, t *testing.T) tampered { return tampered{deletes: []string{"audit/head"}} }, 1, "behind the chain's head"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, audit.Options{})
			for first := 0; first < 620; first += 62 {
				lines := store.NewChange()
				for i := range 62 {
					lines.Audit(audit.OfNode(node.AsSelf(t.Context()), r.now, node.ActionRegister, node.Node{Certname: node.Certname(fmt.Sprintf("n%d.test", first+i))}))
				}
				if _, err := r.store.Commit(t.Context(), lines); err != nil {
					t.Fatal(err)
				}
			}
			r.seal(t)
			if v := r.verify(t, nil); v.Flaw != nil || v.Lines != 620 {
				t.Fatalf("before: %+v", v)
			}
			how := tt.do(r, t)
			b := store.Batch{Deletes: how.deletes}
			for k, v := range how.puts {
				b.Puts = append(b.Puts, store.Put{Key: k, Value: []byte(v)})
			}
			if _, err := r.engine.Commit(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			v := r.verify(t, nil)
			if v.Flaw == nil || v.Flaw.Seq != tt.want || !strings.Contains(v.Flaw.Why, tt.why) {
				t.Errorf("found %v, want line %d, %q", v.Flaw, tt.want, tt.why)
			}
		})
	}
}

// rehashed alters a line and makes its own hash good.
func rehashed(t *testing.T, text string) string {
	t.Helper()
	var l node.SealedLine
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		t.Fatal(err)
	}
	l.Principal = "somebody else"
	l.Hash = audit.Hash(l)
	b, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A tail that is cut off with the head set back shows only against what was noted elsewhere.
func TestCutTail(t *testing.T) {
	r := newRig(t, audit.Options{})
	r.do(t, "a.test")
	early := r.seal(t)
	r.do(t, "b.test")
	late := r.seal(t)
	text, err := json.Marshal(early)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.engine.Commit(t.Context(), store.Batch{Deletes: []string{key(2)}, Puts: []store.Put{{Key: "audit/head", Value: text}}}); err != nil {
		t.Fatal(err)
	}
	if v := r.verify(t, nil); v.Flaw != nil {
		t.Errorf("found without an anchor: %+v, which docs/audit.md says can't be", v)
	}
	if v := r.verify(t, &audit.Anchor{Seq: late.Seq, Hash: late.Hash}); v.Flaw == nil || v.Flaw.Seq != 2 || !strings.Contains(v.Flaw.Why, "cut off") {
		t.Errorf("%+v", v)
	}
	r.do(t, "c.test") // and goes on, as if nothing had been
	if v := r.verify(t, &audit.Anchor{Seq: late.Seq, Hash: late.Hash}); v.Flaw == nil || v.Flaw.Seq != 2 || !strings.Contains(v.Flaw.Why, "rewritten") {
		t.Errorf("%+v", v)
	}
}

// The hash is what docs/audit.md says, so that others can compute it. This one is from the Python there.
func TestHashForm(t *testing.T) {
	l := node.SealedLine{
		Seq: 7, Revision: 42, Prev: audit.Genesis,
		AuditLine: node.AuditLine{
			ID: "0198c0de-0000-7000-8000-000000000000", Time: node.NewAuditTime(time.Date(2026, 11, 22, 1, 2, 3, 4000, time.UTC)),
			Principal: "token:ci", Role: node.Provisioner, Peer: "192.0.2.1:5", Method: "espm.v1.NodeService/TerminateNode",
			Action: node.ActionTerminate, Certname: "web1.example.com", UID: "u", Serial: "1A", Object: "o", RequestID: "r",
			Comment: "ä, ticket 4711", Outcome: "ok", Count: 2, Since: node.NewAuditTime(time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)),
		},
	}
	const want = "71e51e6766987ddc5e7f4a68a5f4f72e67739c838667d8635cdf7cb444c2b7ab"
	if got := audit.Hash(l); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	l.Hash = audit.Hash(l)
	b, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	var back node.SealedLine
	if err := json.Unmarshal(b, &back); err != nil || audit.Hash(back) != l.Hash {
		t.Errorf("%s comes back as %+v, %v", b, back, err)
	}
}

// A Checker takes a part of a chain, as an export may be one.
func TestCheckerFromTheMiddle(t *testing.T) {
	r := newRig(t, audit.Options{})
	for i := range 9 {
		r.do(t, fmt.Sprintf("n%d.test", i))
	}
	var lines []node.SealedLine
	if err := r.Export(node.AsSelf(t.Context()), 4, func(l []node.SealedLine) error { lines = append(lines, l...); return nil }); err != nil {
		t.Fatal(err)
	}
	check := audit.Checker{Expect: &audit.Anchor{Seq: 8, Hash: lines[3].Hash}}
	for _, l := range lines {
		if err := check.Check(l); err != nil {
			t.Error(err)
		}
	}
	if err := check.End(); err != nil || check.First != 5 || check.Last.Seq != 9 || check.Lines != 5 {
		t.Errorf("%+v, %v", check, err)
	}
	var flaw *audit.Flaw
	if err := check.Check(lines[1]); !errors.As(err, &flaw) || flaw.Seq != 10 {
		t.Errorf("a line again: %v", err)
	}
}

func TestParseAnchor(t *testing.T) {
	if a, err := audit.ParseAnchor("12:" + audit.Genesis); err != nil || a.Seq != 12 || a.String() != "12:"+audit.Genesis {
		t.Errorf("%+v, %v", a, err)
	}
	for _, bad := range []string{"", "1", "0:" + audit.Genesis, "-1:" + audit.Genesis, "1:abc", "x:" + audit.Genesis, "1:" + strings.Repeat("A", 64), "1:" + audit.Genesis + "0"} {
		if _, err := audit.ParseAnchor(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
