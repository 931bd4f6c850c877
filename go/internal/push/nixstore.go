package push

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"hercules/internal/nix/daemon"
	"hercules/internal/push/fault"
	"hercules/internal/push/pack"
)

// nixStore is a store that Nix opens for us: a nix-daemon of its own, spoken to over standard input and output. It is
// opened for each push: what it keeps from being collected is let go with it.
type nixStore struct {
	ep   daemon.Endpoint
	opts daemon.Options
}

func newNixStore(uri, program string, env []string, settings map[string]string) *nixStore {
	if program == "" {
		program = "nix-daemon"
	}
	if env == nil {
		env = os.Environ()
	}
	if strings.HasPrefix(uri, "ssh-ng://") {
		settings = nil // the daemon there is another machine's
	}
	return &nixStore{
		ep: daemon.Endpoint{
			// As an option it also counts where nix.conf names a store.
			Command: []string{program, "--stdio", "--store", uri},
			Env:     append(slices.Clip(env), "NIX_REMOTE="+uri),
		},
		opts: daemon.Options{Settings: settings, Verbosity: daemon.Error},
	}
}

func (n *nixStore) with(ctx context.Context, f func(*daemon.Conn) error) error {
	c, err := daemon.Dial(ctx, n.ep, n.opts)
	if err == nil {
		err = f(c)
		if closeErr := c.Close(); err == nil {
			err = closeErr
		}
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	remote, refused := errors.AsType[*daemon.RemoteError](err)
	switch {
	case refused && strings.Contains(remote.Msg, "lacks a"): // valid signature, or a signature by a trusted key
		return fmt.Errorf("%w (give this cache a signing key, and the store its public key in trusted-public-keys)", err)
	case refused:
		return err
	}
	if _, ours := errors.AsType[*pathError](err); ours {
		return err
	}
	return fault.As(fault.Transient, err)
}

// Missing implements target.
func (n *nixStore) Missing(ctx context.Context, paths []string) ([]string, error) {
	var valid []string
	err := n.with(ctx, func(c *daemon.Conn) (err error) {
		valid, err = c.QueryValidPaths(ctx, paths, false)
		return err
	})
	if err != nil {
		return nil, err
	}
	have := make(map[string]bool, len(valid))
	for _, p := range valid {
		have[p] = true
	}
	return slices.DeleteFunc(slices.Clone(paths), func(p string) bool { return have[p] }), nil
}

// Copy implements copier. A path is valid there when all of it is.
func (n *nixStore) Copy(ctx context.Context, infos []*daemon.PathInfo, nar func(context.Context, *daemon.PathInfo, io.Writer) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var readers sync.WaitGroup
	defer readers.Wait()
	failed := make(chan error, len(infos)) // of reading
	sources := make([]daemon.NarSource, len(infos))
	for i, info := range infos {
		sources[i] = daemon.NarSource{Info: info, Open: func() (io.ReadCloser, error) {
			r, w := io.Pipe()
			readers.Go(func() {
				hash := sha256.New()
				err := nar(ctx, info, io.MultiWriter(w, hash))
				if err == nil && string(hash.Sum(nil)) != string(info.NarHash) {
					err = errors.New("it is corrupt in the store; repair it with nix-store --repair-path")
				}
				if err != nil {
					failed <- &pathError{info.Path, err}
				}
				_ = w.CloseWithError(err)
			})
			return r, nil
		}}
	}
	return n.with(ctx, func(c *daemon.Conn) error {
		err := c.AddMultipleToStore(ctx, sources, daemon.AddOptions{})
		if _, refused := errors.AsType[*daemon.RemoteError](err); err != nil && !refused {
			select {
			case err = <-failed:
			default:
			}
		}
		return err
	})
}

// Upload implements target; it is not called, because Copy is.
func (n *nixStore) Upload(context.Context, *daemon.PathInfo, func(io.Writer) error, func(pack.Result) error) (func(context.Context) error, uint64, error) {
	return nil, 0, errors.ErrUnsupported
}

// Close implements target.
func (n *nixStore) Close() {}
