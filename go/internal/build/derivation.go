package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/nix-community/go-nix/pkg/nar"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/derivation"
)

// maxDerivation bounds what is read of a derivation that comes as a NAR.
const maxDerivation = 64 << 20

// getDerivation finds the derivation in the store, else in the caches. present says that it is in the store.
func getDerivation(ctx context.Context, c *daemon.Conn, drvPath string, d Deps) (drv *derivation.Derivation, present bool, err error) {
	missing := func(why error) error {
		return fmt.Errorf("the derivation %s is neither in the store of this machine nor in a cache that it can use: %w", drvPath, why)
	}
	present, err = c.IsValidPath(ctx, drvPath)
	if err != nil {
		return nil, false, fmt.Errorf("asking the Nix daemon for %s: %w", drvPath, err)
	}
	// Where the closure is needed anyway, the daemon gets it, and the derivation with it.
	if !present && d.Fetch != nil && d.Trusted {
		text, err := d.Fetch(ctx, drvPath)
		if err != nil {
			d.Log.Line(daemon.Warn, fmt.Sprintf("Looking for %s in the caches: %v", drvPath, err))
		}
		if text != nil {
			drv, err := derivation.Parse(text)
			if err != nil {
				return nil, false, fmt.Errorf("reading %s from a cache: %w", drvPath, err)
			}
			return drv, false, nil
		}
	}
	if !present {
		if err := c.EnsurePath(ctx, drvPath); err != nil {
			return nil, false, missing(err)
		}
		present = true
	}
	// The daemon may be far away or have its store elsewhere; then the file is not here, and the protocol has it.
	if drv, err := derivation.Read(d.Conns.Root(), drvPath); err == nil {
		return drv, true, nil
	}
	text, err := readText(ctx, c, drvPath)
	if err != nil {
		return nil, false, fmt.Errorf("reading %s: %w", drvPath, err)
	}
	if drv, err = derivation.Parse(text); err != nil {
		return nil, false, fmt.Errorf("reading %s: %w", drvPath, err)
	}
	return drv, true, nil
}

// readText reads a store path that is a regular file, through the daemon.
func readText(ctx context.Context, c *daemon.Conn, path string) ([]byte, error) {
	w := &limited{max: maxDerivation}
	if err := c.NarFromPath(ctx, path, w); err != nil {
		return nil, err
	}
	r, err := nar.NewReader(&w.buf)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	h, err := r.Next()
	if err != nil {
		return nil, err
	}
	if h.Path != "/" || h.Type != nar.TypeRegular {
		return nil, errors.New("not a regular file")
	}
	return io.ReadAll(r)
}

// limited is a buffer that refuses to grow beyond max.
type limited struct {
	buf bytes.Buffer
	max int
}

func (l *limited) Write(b []byte) (int, error) {
	if l.buf.Len()+len(b) > l.max {
		return 0, fmt.Errorf("more than %d bytes", l.max)
	}
	return l.buf.Write(b)
}
