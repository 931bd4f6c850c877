package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// writerAttempts is how often a batch is tried when daemons go away during it.
const writerAttempts = 3

// run writes batches until there is an error.
func (w *Writer) run() {
	var conn *Conn
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	for {
		batch := w.take()
		if len(batch) == 0 {
			return
		}
		var err error
		for attempt := range writerAttempts {
			if conn == nil {
				conn, err = w.connect()
			}
			if conn != nil {
				if err = w.write(conn, batch); err == nil {
					break
				}
			}
			if _, remote := errors.AsType[*RemoteError](err); remote || w.ctx.Err() != nil {
				break
			}
			// Whatever was done of the batch does no harm a second time.
			w.log.Warn("the Nix daemon went away while derivations were written", "attempt", attempt+1, "error", err)
			if conn != nil {
				_ = conn.Close()
				conn = nil
			}
		}
		if err != nil {
			w.fail(fmt.Errorf("writing derivations: %w", err))
			return
		}
		w.answered(len(batch))
	}
}

// connect dials. What an earlier connection kept from the garbage collector must be there still and be kept again.
func (w *Writer) connect() (*Conn, error) {
	conn, err := Dial(w.ctx, w.endpoint, w.options)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	var old []string
	for path, number := range w.known {
		if number <= w.done {
			old = append(old, path)
		}
	}
	w.mu.Unlock()
	valid, err := conn.keepValid(w.ctx, old)
	for _, path := range old {
		if err == nil && !valid[path] {
			err = &RemoteError{Msg: path + " was deleted while the Nix daemon was away"}
		}
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// write makes the paths of a batch valid and keeps them.
func (w *Writer) write(conn *Conn, batch []request) error {
	var there []string
	for _, r := range batch {
		// A look at the disk is cheaper than a question, and a file that is not there needs none. Where the store is not
		// in this file system, all files are added, which is right too.
		if _, err := os.Lstat(w.endpoint.Root + r.path); r.text == nil || !errors.Is(err, fs.ErrNotExist) {
			there = append(there, r.path)
		}
	}
	valid, err := conn.keepValid(w.ctx, there)
	if err != nil {
		return err
	}
	var missing []request
	for _, r := range batch {
		switch {
		case valid[r.path]:
		case r.text == nil:
			return &RemoteError{Msg: r.path + " was deleted during its use"}
		default:
			missing = append(missing, r)
		}
	}
	return conn.addTexts(w.ctx, missing)
}

// keepValid makes paths temporary roots and returns those that are valid. In this order: what is found can't go away.
func (c *Conn) keepValid(ctx context.Context, paths []string) (map[string]bool, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	valid := make(map[string]bool, len(paths))
	n := len(paths)
	err := c.pipeline(ctx, opAddTempRoot.String(), n+1, func(i int) {
		if i < n {
			c.w.uint(uint64(opAddTempRoot))
			c.w.string(paths[i])
			return
		}
		c.w.uint(uint64(opQueryValidPaths))
		c.w.strings(paths)
		c.w.bool(false) // substitute
	}, func(i int) error {
		if i < n {
			c.done()
			return nil
		}
		for _, p := range c.r.paths() {
			valid[p] = true
		}
		return nil
	})
	return valid, err
}

// addTexts adds texts with the paths that they must get.
func (c *Conn) addTexts(ctx context.Context, texts []request) error {
	return c.pipeline(ctx, opAddToStore.String(), len(texts), func(i int) {
		t := texts[i]
		c.w.uint(uint64(opAddToStore))
		c.w.addText(t.name, t.references)
		c.w.uint(uint64(len(t.text))) // of the one frame; it is not empty
		_, _ = c.w.bw.Write(t.text)
		c.w.uint(0)
	}, func(i int) error {
		path := c.r.path()
		c.r.pathInfo(path)
		if c.r.err == nil && path != texts[i].path {
			return &RemoteError{Msg: fmt.Sprintf("the Nix daemon says that the path of %s is %s", texts[i].path, path)}
		}
		return nil
	})
}

// pipeline sends n requests without waiting for the answers of those before. Its result is the first error of a
// request, after all have been answered, or an error of the connection.
func (c *Conn) pipeline(ctx context.Context, what string, n int, request func(i int), result func(i int) error) error {
	if n == 0 {
		return nil
	}
	return c.guard(ctx, what, func() error {
		sent := make(chan error, 1)
		go func() {
			for i := range n {
				request(i)
			}
			sent <- c.w.flush()
		}()
		var first, broken error
		for i := 0; i < n && broken == nil; i++ {
			var said error
			err := c.answer(func() { said = result(i) })
			if _, remote := errors.AsType[*RemoteError](err); err != nil && !remote {
				broken = err
			}
			for _, err := range []error{err, said} {
				if first == nil {
					first = err
				}
			}
		}
		if broken != nil {
			c.t.hangUp() // the sender may be waiting
			<-sent
			return broken
		}
		if err := <-sent; err != nil {
			return err
		}
		return first
	})
}
