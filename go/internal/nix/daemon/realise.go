package daemon

import (
	"context"
	"errors"
	"maps"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var errClientGone = errors.New("the Nix client has left")

// realise reads the arguments of an operation that builds or substitutes, asks the hook, and sends them to the daemon.
// answered: the client has its answer.
func (c *proxyConn) realise(o op) (answered bool, err error) {
	var paths []DerivedPath
	var forward func()
	switch o {
	case opBuildPaths, opBuildPathsWithResults:
		paths = c.cr.derivedPaths()
		mode := c.cr.uint()
		forward = func() {
			c.uw.derivedPaths(paths)
			c.uw.uint(mode)
		}
	case opBuildDerivation:
		path := c.cr.path()
		drv := c.cr.basicDerivation()
		mode := c.cr.uint()
		paths = []DerivedPath{{Path: path, Outputs: slices.Sorted(maps.Keys(drv.Outputs))}}
		forward = func() {
			c.uw.string(path)
			c.uw.basicDerivation(drv)
			c.uw.uint(mode)
		}
	case opEnsurePath:
		path := c.cr.path()
		paths = []DerivedPath{{Path: path}}
		forward = func() { c.uw.string(path) }
	}
	if c.cr.err != nil {
		return false, c.cr.err
	}
	if hook := c.proxy.Hooks.Realise; hook != nil {
		ctx, cancel := context.WithCancelCause(c.ctx)
		stop := c.watchClient(func() { cancel(errClientGone) })
		err := hook(ctx, paths)
		stop()
		gone := ctx.Err() != nil
		cancel(nil)
		if gone {
			return false, errClientGone
		}
		if err != nil {
			_ = c.refuse(err)
			return true, nil
		}
	}
	c.uw.uint(uint64(o))
	forward()
	return false, nil
}

// watchClient calls gone when the client leaves, until stop is called.
func (c *proxyConn) watchClient(gone func()) (stop func()) {
	sc, ok := c.client.(syscall.Conn)
	if !ok {
		return func() {}
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		left := false
		err := raw.Read(func(fd uintptr) bool {
			n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
				return false
			case err == nil && n > 0:
				// It sends on without waiting for the answer. No Nix does; nothing can be said of it then.
				return true
			}
			// It will not send any more, but it may still listen: then both ways are not down.
			left = err != nil || hungUp(int(fd))
			return true
		})
		if left && err == nil {
			gone()
		}
	}()
	return func() {
		_ = c.client.SetReadDeadline(time.Unix(1, 0))
		<-done
		_ = c.client.SetReadDeadline(time.Time{})
	}
}

// clientHungUp tells whether the client has closed both ways.
func (c *proxyConn) clientHungUp() bool {
	sc, ok := c.client.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	hup := false
	err = raw.Control(func(fd uintptr) { hup = hungUp(int(fd)) })
	return hup || err != nil
}

func hungUp(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}
