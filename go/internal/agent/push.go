package agent

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"hercules/internal/agent/setup"
	"hercules/internal/build"
	"hercules/internal/evaluate/report"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/substituter"
	"hercules/internal/push"
)

// openPusher prepares the caches of a setup to be pushed to. Nothing is asked of them yet.
func (a *agent) openPusher(s *setup.Setup) (err error) {
	s.Pusher, err = push.Open(s.Caches.Caches, push.Deps{
		Endpoint:    a.store.Endpoint,
		Settings:    s.Settings,
		Trusted:     a.nixInfo.trusted,
		NixDaemon:   a.program("nix-daemon"),
		Env:         a.opt.Env,
		Credentials: credentials(s.Operator),
		TempDir:     a.cfg.WorkDirectory,
		Log:         a.log,
	})
	if err != nil {
		return fmt.Errorf("binary caches: %s: %w", a.cfg.BinaryCachesPath, err)
	}
	return nil
}

// credentials of the operator's netrc, which is what Nix would use to upload.
func credentials(netrc []byte) func(host string) *url.Userinfo {
	text := string(netrc)
	return func(host string) *url.Userinfo { return substituter.FindLogin(text, host) }
}

// derivationPusher gives evaluations their way to the caches; nil when there is nothing to push to.
func derivationPusher(s *setup.Setup) report.Pusher {
	if s.Pusher == nil || len(s.Pusher.Caches()) == 0 {
		return nil
	}
	return s.Pusher
}

// outputPusher gives builds their way to the caches; nil when there is nothing to push to.
func outputPusher(s *setup.Setup) build.Pusher {
	if s.Pusher == nil || len(s.Pusher.Caches()) == 0 {
		return nil
	}
	return outputs{s.Pusher}
}

// outputs pushes what was built, and says so in the log of the build.
type outputs struct{ pusher *push.Pusher }

func (o outputs) Push(ctx context.Context, paths []string, log build.Log, pushed func(cache string) error) error {
	return o.pusher.Push(ctx, paths, push.Options{Done: func(d push.Done) error {
		if d.Uploaded > 0 {
			log.Line(daemon.Info, fmt.Sprintf("Uploaded %d of %d store paths to the cache %s: %.1f MiB in %v.",
				d.Uploaded, d.Paths, d.Cache, float64(d.Sent)/(1<<20), d.Duration.Round(10*time.Millisecond)))
		}
		return pushed(d.Cache)
	}})
}
