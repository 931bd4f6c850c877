package systemd_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/systemd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// manager is a service manager's socket, as NOTIFY_SOCKET names it.
func manager(t *testing.T) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		b := make([]byte, 4096)
		if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func TestMessages(t *testing.T) {
	next := manager(t)
	for _, c := range []struct {
		send func(string) error
		text string
		want string
	}{
		{systemd.Ready, "online", "READY=1\nSTATUS=online"},
		{systemd.Status, "2 tasks\nWATCHDOG=trigger", "STATUS=2 tasks WATCHDOG=trigger"},
		{systemd.Stopping, "waiting for 1 task", "STOPPING=1\nSTATUS=waiting for 1 task"},
	} {
		if err := c.send(c.text); err != nil {
			t.Fatal(err)
		}
		if got := next(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestWithoutManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	if err := systemd.Ready("online"); err != nil {
		t.Error(err)
	}
	systemd.Watchdog(t.Context(), func(context.Context) error { return nil }, slog.New(slog.DiscardHandler)) // returns
}

func TestWatchdogBeatsOverTheSocket(t *testing.T) {
	next := manager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		systemd.Watchdog(ctx, func(context.Context) error { return nil }, slog.New(slog.DiscardHandler))
	}()
	for range 3 {
		if got := next(); got != "WATCHDOG=1" {
			t.Errorf("got %q", got)
		}
	}
	cancel()
	<-done
}

func TestWatchdogIsSilentWhileNotAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 95*time.Second)
		defer cancel()
		begin := time.Now()
		var beats []time.Duration
		alive := func(ctx context.Context) error {
			switch at := time.Since(begin); {
			case at < 25*time.Second, at >= 75*time.Second:
				return nil
			case at < 45*time.Second:
				return errors.New("the task runner does not answer")
			default: // hangs until the question's own limit
				<-ctx.Done()
				return ctx.Err()
			}
		}
		systemd.WatchdogEvery(ctx, 10*time.Second, alive, slog.New(slog.DiscardHandler), func() error {
			beats = append(beats, time.Since(begin))
			return nil
		})
		want := []time.Duration{0, 10 * time.Second, 20 * time.Second, 80 * time.Second, 90 * time.Second}
		if diff := cmp.Diff(want, beats); diff != "" {
			t.Error(diff)
		}
	})
}
