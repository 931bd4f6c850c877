// Package systemd tells the service manager how the program is: ready, its status, alive, stopping. Without a service
// manager (another platform, a terminal) everything here does nothing. It is a leaf; it does not decide what alive
// means.
package systemd

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Ready says that start-up is complete, with a first status line.
func Ready(status string) error { return notify(daemon.SdNotifyReady, statusLine(status)) }

// Status shows one line in systemctl status.
func Status(status string) error { return notify(statusLine(status)) }

// Stopping says that the program has begun to end.
func Stopping(status string) error { return notify(daemon.SdNotifyStopping, statusLine(status)) }

// Watchdog beats for the service manager, at half of the interval that it asks for, until ctx ends, but only while
// alive says nil: a program that hangs gets no beat and is restarted. It returns at once when no watchdog is wanted.
func Watchdog(ctx context.Context, alive func(context.Context) error, log *slog.Logger) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("cannot read the watchdog interval", "error", err)
		return
	}
	if interval > 0 {
		watchdog(ctx, interval/2, alive, log, func() error { return notify(daemon.SdNotifyWatchdog) })
	}
}

func watchdog(ctx context.Context, every time.Duration, alive func(context.Context) error, log *slog.Logger, beat func() error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		// The question has a limit of its own: an answer that never comes must not end the beat without a word.
		ask, cancel := context.WithTimeout(ctx, every)
		err := alive(ask)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.Error("not alive, the watchdog is not told", "error", err)
		default:
			if err := beat(); err != nil {
				log.Warn("cannot reach the service manager", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// notify sends all assignments in one message, as the protocol wants. No socket is no error.
func notify(assignments ...string) error {
	_, err := daemon.SdNotify(false, strings.Join(assignments, "\n"))
	return err
}

// statusLine: a newline would begin another assignment.
func statusLine(s string) string { return "STATUS=" + strings.Join(strings.Fields(s), " ") }
