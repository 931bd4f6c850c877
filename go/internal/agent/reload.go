package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"

	"hercules/internal/agent/setup"
	"hercules/internal/logging"
	"hercules/internal/secrets"
	"hercules/internal/secrets/watch"
)

// maxProblem bounds what is told of a wrong file outside the log.
const maxProblem = 500

// watchFiles follows the files of the setup until ctx ends. A file that became wrong changes nothing but what is said:
// in the log, in the status line, and in the agent's info for the coordinator.
func (a *agent) watchFiles(ctx context.Context) {
	paths := []string{a.cfg.BinaryCachesPath}
	if netrc := a.nix.NetrcFile(); netrc != "" {
		paths = append(paths, netrc)
	}
	w := watch.New(paths, watch.Options{Log: a.log})
	if a.opt.Reload != nil {
		forwarding := make(chan struct{})
		defer func() { <-forwarding }()
		go func() {
			defer close(forwarding)
			for {
				select {
				case <-ctx.Done():
					return
				case <-a.opt.Reload:
					a.log.Info("asked to read the binary caches and the netrc again")
					w.Reread()
				}
			}
		}()
	}
	w.Run(ctx, func(files []watch.File) {
		operator := watch.File{Err: fs.ErrNotExist}
		if len(files) > 1 {
			operator = files[1]
		}
		a.reload(files[0], operator)
	})
}

// reload makes a new setup, if the files are good and say something new.
func (a *agent) reload(cachesFile, operatorFile watch.File) {
	old, problem := a.setups.State()
	s, err := a.readSetup(old, cachesFile, operatorFile)
	if err != nil {
		text := brief(err)
		a.setups.SetProblem(text)
		a.status.problem(text)
		if text != problem {
			a.log.Error("changed secrets are not used, because they are wrong; the last good ones stay in use", "error", err)
		}
		return
	}
	a.setups.SetProblem("")
	a.status.problem("")
	switch {
	case s != old:
		a.setups.Replace(s)
		for _, w := range s.Caches.Warnings {
			a.log.Warn("binary caches", "warning", w)
		}
		a.log.Info("changed binary caches or netrc are in use from the next task on", "pushCaches", s.Caches.PushCaches(), "caches", len(s.Caches.Caches))
	case problem != "":
		a.log.Info("the binary caches and the netrc are good again, and as they were")
	}
}

// readSetup gives the setup that the files describe: old, if it is the same.
func (a *agent) readSetup(old *setup.Setup, cachesFile, operatorFile watch.File) (*setup.Setup, error) {
	if err := cachesFile.Err; err != nil {
		return nil, fmt.Errorf("binary caches: %w", err)
	}
	caches, err := secrets.ParseBinaryCaches(cachesFile.Path, cachesFile.Content)
	if err != nil {
		return nil, err
	}
	if err := checkCaches(cachesFile.Path, caches); err != nil {
		return nil, err
	}
	operator, err := operatorNetrc(operatorFile)
	if err != nil {
		return nil, err
	}
	if reflect.DeepEqual(caches.Caches, old.Caches.Caches) && bytes.Equal(operator, old.Operator) {
		return old, nil
	}
	s, err := setup.New(a.secure, a.nix, a.cfg.NixSettings, caches, operator)
	if err != nil {
		return nil, err
	}
	if err := a.openPusher(s); err != nil {
		s.Remove(a.log)
		return nil, err
	}
	return s, nil
}

// operatorNetrc is the content of Nix's own netrc file, which need not exist.
func operatorNetrc(f watch.File) ([]byte, error) {
	if f.Err != nil && !errors.Is(f.Err, fs.ErrNotExist) {
		return nil, fmt.Errorf("netrc: %w", f.Err)
	}
	return f.Content, nil
}

// brief is an error on one line that may leave the machine. Errors of secrets have no secrets in them to begin with;
// this is the last net.
func brief(err error) string {
	text := strings.Join(strings.Fields(logging.Redact(err.Error())), " ")
	if len(text) > maxProblem {
		text = strings.ToValidUTF8(text[:maxProblem], "") + " …"
	}
	return text
}
