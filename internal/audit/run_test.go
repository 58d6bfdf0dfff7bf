package audit_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

// Run seals what an earlier process left, and at its end what is in memory.
func TestRun(t *testing.T) {
	r := newRig(t, audit.Options{})
	r.do(t, "a.test")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { r.Run(ctx); close(ended) }()
	for range 30 {
		r.Refuse(audit.Line(ctx, r.now, node.ActionTerminate), "INVALID")
	}
	cancel()
	<-ended
	if head := r.head(t); head.Seq != 12 {
		t.Errorf("%+v, want a line of a change, ten refusals and a sum", head)
	}
	if v := r.verify(t, nil); v.Flaw != nil {
		t.Errorf("%+v", v)
	}
}

// A damaged line at the base of a log that is too large: lines are sealed, and the base is looked at now and then, not each second.
func TestRunBesideADamagedLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, audit.Options{MaxBytes: 1000})
		log := logtest.NewLocal(r.Log.Log.(*logrus.Logger))
		r.Now = time.Now
		for i := range 10 {
			r.do(t, fmt.Sprintf("n%d.test", i))
		}
		r.seal(t)
		if _, err := r.engine.Commit(t.Context(), store.Batch{Puts: []store.Put{{Key: key(1), Value: []byte("{")}}}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { r.Run(ctx); close(ended) }()
		told := func() (n int) {
			for _, entry := range log.AllEntries() {
				if err, _ := entry.Data[logrus.ErrorKey].(error); err != nil && strings.Contains(err.Error(), "line 1 is damaged, so it and all lines after it are not pruned") {
					n++
				}
			}
			return n
		}
		time.Sleep(9*time.Minute + time.Second/2)
		if n := told(); n != 1 {
			t.Errorf("told %d times in nine minutes, want once", n)
		}
		r.do(t, "late.test")
		time.Sleep(51 * time.Minute)
		if n := told(); n != 6 && n != 7 {
			t.Errorf("told %d times in an hour, want each ten minutes", n)
		}
		cancel()
		<-ended
		if head := r.head(t); head.Base != 0 || head.Seq != 11 {
			t.Errorf("%+v, want all eleven lines", head)
		}
	})
}
