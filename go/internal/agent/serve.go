package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"hercules/internal/config"
	"hercules/internal/proc"
	"hercules/internal/systemd"
)

var errSignal = errors.New("second signal")

// Serve runs the agent as a service of the operating system. The first SIGTERM or SIGINT lets it finish and leave, the
// second one stops it at once. SIGHUP makes it read the binary caches and the netrc again, which it also does by itself
// when they change.
func Serve(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	if n, err := proc.RaiseFileLimit(); err != nil {
		log.Warn("the limit of open files may be too low", "limit", n, "error", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	reload := make(chan struct{}, 1)
	defer signal.Stop(signals)
	drain := make(chan struct{})
	started := make(chan struct{}) // Run is past its start, where there is nothing to drain
	go func() {
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				n--
				select {
				case reload <- struct{}{}:
				default: // It is about to be done.
				}
			case s := <-signals:
				if n == 0 {
					log.Info("asked to stop; a second signal stops at once", "signal", s.String())
					close(drain)
					select {
					case <-started:
					default:
						cancel(errSignal)
					}
					continue
				}
				log.Warn("stopping at once", "signal", s.String())
				cancel(errSignal)
			}
		}
	}()
	return Run(ctx, cfg, Options{Log: log, Drain: drain, Reload: reload, Started: started, Service: service{log}})
}

// service is systemd, or nothing where there is none.
type service struct{ log *slog.Logger }

func (s service) Ready(status string)    { s.check(systemd.Ready(status)) }
func (s service) Status(status string)   { s.check(systemd.Status(status)) }
func (s service) Stopping(status string) { s.check(systemd.Stopping(status)) }

func (s service) Watch(ctx context.Context, alive func(context.Context) error) {
	systemd.Watchdog(ctx, alive, s.log)
}

func (s service) check(err error) {
	if err != nil {
		s.log.Warn("cannot reach the service manager", "error", err)
	}
}
