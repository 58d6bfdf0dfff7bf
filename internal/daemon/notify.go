package daemon

import (
	"context"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// tell says to the service manager that started espm, if one did, what state
// it is in. One that can't be told will act as if it had not been, and that is
// all that can be done about it.
func (d *daemon) tell(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		d.log.WithError(err).WithField("state", state).Warning("the service manager can't be told")
	}
}

// alive answers the service manager's watchdog for as long as the store
// answers, reading and writing: a daemon that hangs there is of no use, and a new one may be.
func (d *daemon) alive(ctx context.Context) {
	every, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		d.log.WithError(err).Error("the service manager's watchdog is set wrongly, and not answered")
	}
	if err != nil || every == 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		if err := d.asked(ctx, every/3); err == nil {
			d.tell(sd.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			d.log.WithError(err).Error("the store does not answer; the service manager's watchdog is not either")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (d *daemon) asked(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return d.store.Answers(ctx)
}
