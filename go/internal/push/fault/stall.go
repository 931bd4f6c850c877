package fault

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Watch ends a context when nothing moves for some time: an upload may take as long as it wants, as long as it goes on.
type Watch struct {
	timer *time.Timer
	idle  time.Duration
	stop  context.CancelCauseFunc
}

// NewWatch starts to watch. Call Stop.
func NewWatch(ctx context.Context, idle time.Duration) (context.Context, *Watch) {
	ctx, stop := context.WithCancelCause(ctx)
	w := &Watch{idle: idle, stop: stop}
	w.timer = time.AfterFunc(idle, func() {
		stop(As(Transient, fmt.Errorf("nothing moved for %v", idle)))
	})
	return ctx, w
}

// Moved says that something moved.
func (w *Watch) Moved() { w.timer.Reset(w.idle) }

// Stop ends the watch and its context.
func (w *Watch) Stop() {
	w.timer.Stop()
	w.stop(nil)
}

// Reader is r with its movements watched. It keeps Close, so that it is the body of a request as it is.
func (w *Watch) Reader(r io.Reader) io.ReadCloser { return &watched{r, w} }

type watched struct {
	io.Reader
	w *Watch
}

func (r *watched) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.w.Moved()
	return n, err
}

func (*watched) Close() error { return nil }
