package daemon

import (
	"context"
	"fmt"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
)

// supervisor is the service manager that started espm, if any.
type supervisor struct{ log *logrus.Logger }

// tell reports espm's state. An error is only logged.
func (s supervisor) tell(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		s.log.WithError(err).WithField("state", state).Warning("the service manager can't be told")
	}
}

// alive answers the watchdog while reads and writes of the store work. If the
// store hangs, the supervisor restarts the daemon.
func (s supervisor) alive(ctx context.Context, answers func(context.Context) error) {
	every, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		s.log.WithError(err).Error("the service manager's watchdog is set wrongly, and not answered")
	}
	if err != nil || every == 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		if err := within(ctx, every/3, answers); err == nil {
			s.tell(sd.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			s.log.WithError(err).Error("the store does not answer, so espm does not answer the watchdog of the service manager")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// within calls a function with a time limit.
func within(ctx context.Context, bound time.Duration, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	return call(ctx)
}

// moreTime is the extension that a long start requests repeatedly. It counts from the request.
const moreTime = time.Minute

// askForTime extends the supervisor's time limit while the start makes progress.
func (s supervisor) askForTime(ctx context.Context) {
	tick := time.NewTicker(moreTime / 4)
	defer tick.Stop()
	for {
		s.tell(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", moreTime.Microseconds()))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
