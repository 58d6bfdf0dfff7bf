package daemon

import (
	"context"
	"fmt"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
)

// supervisor is the service manager that started espm, if one did.
type supervisor struct{ log *logrus.Logger }

// tell says what state espm is in. A supervisor that can't be told is logged, and espm goes on.
func (s supervisor) tell(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		s.log.WithError(err).WithField("state", state).Warning("the service manager can't be told")
	}
}

// alive answers the watchdog for as long as the store answers, reading and writing. A daemon
// whose store hangs is of no use; the supervisor then starts a new one.
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
			s.log.WithError(err).Error("the store does not answer; the service manager's watchdog is not either")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// within bounds a call.
func within(ctx context.Context, bound time.Duration, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	return call(ctx)
}

// moreTime is what a long start asks for, again and again: it may take that long from then on.
const moreTime = time.Minute

// askForTime keeps the supervisor from ending a start that works.
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
