package socket

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"

	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/codec"
)

// maxBatch is how many messages are taken from the outbox at a time (section 3.4).
const maxBatch = 100

// link is one connection after its handshake.
type link[In any] struct {
	conn  *websocket.Conn
	out   *outbox
	times Times
	// cumulative says that an ack stands for all before it, so that only the highest needs to be sent.
	cumulative bool
	// frame handles what is no Ack. It calls ack when a message is safe.
	frame func(ctx context.Context, f *agentapi.Frame[In]) error

	mu   sync.Mutex
	acks []int64
}

// ack has the message n acknowledged, soon.
func (l *link[In]) ack(n int64) {
	l.mu.Lock()
	if l.cumulative {
		l.acks = l.acks[:0]
	}
	l.acks = append(l.acks, n)
	l.mu.Unlock()
	l.out.notify()
}

// run reads and writes until something fails. It closes the connection.
func (l *link[In]) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(l.write(ctx)) })
	err := l.read(ctx)
	cancel(err)
	_ = l.conn.CloseNow()
	wg.Wait()
	return context.Cause(ctx)
}

func (l *link[In]) read(ctx context.Context) error {
	for {
		f, err := readFrame[In](ctx, l.conn, l.times.Receive)
		if err != nil {
			return err
		}
		if f.Ack != nil {
			l.out.ack(f.Ack.N)
			continue
		}
		if err := l.frame(ctx, f); err != nil {
			return err
		}
	}
}

// readFrame reads one frame, which must come within the limit. 0: no limit but that of ctx.
func readFrame[In any](ctx context.Context, conn *websocket.Conn, limit time.Duration) (*agentapi.Frame[In], error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, ErrSilent)
		defer cancel()
	}
	_, data, err := conn.Read(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("receiving: %w", err)
	}
	f := new(agentapi.Frame[In])
	if err := codec.Unmarshal(data, f); err != nil {
		return nil, err
	}
	return f, nil
}

func (l *link[In]) write(ctx context.Context) error {
	var batch []item
	var acks []int64
	var buf []byte
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		l.mu.Lock()
		acks = append(acks[:0], l.acks...)
		l.acks = l.acks[:0]
		l.mu.Unlock()
		for _, n := range acks {
			if err := writeBytes(ctx, l.conn, appendAck(buf[:0], n)); err != nil {
				return err
			}
		}
		batch = l.out.take(batch[:0], maxBatch)
		for i := range batch {
			buf = appendMsg(buf[:0], batch[i])
			batch[i].payload = nil
			if err := writeBytes(ctx, l.conn, buf); err != nil {
				return err
			}
		}
		if cap(buf) > 1<<20 {
			buf = nil
		}
		if len(acks)+len(batch) > 0 {
			continue
		}
		var overdue <-chan time.Time
		if left, awaited := l.out.patience(l.times.Ack); awaited {
			if left <= 0 {
				return ErrNoAck
			}
			timer.Reset(left)
			overdue = timer.C
		}
		select {
		case <-l.out.wake:
		case <-overdue:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func appendAck(b []byte, n int64) []byte {
	b = append(b, `{"tag":"Ack","n":`...)
	return append(strconv.AppendInt(b, n, 10), '}')
}

func appendMsg(b []byte, m item) []byte {
	b = append(b, `{"tag":"Msg","n":`...)
	b = strconv.AppendInt(b, m.n, 10)
	b = append(b, `,"p":`...)
	b = append(b, m.payload...)
	return append(b, '}')
}

// writeBytes writes a frame. The agent of the reference sends binary messages, so do we.
func writeBytes(ctx context.Context, conn *websocket.Conn, b []byte) error {
	if err := conn.Write(ctx, websocket.MessageBinary, b); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("sending: %w", err)
	}
	return nil
}

func writeFrame[P any](ctx context.Context, conn *websocket.Conn, f agentapi.Frame[P]) error {
	b, err := codec.Marshal(&f)
	if err != nil {
		return err
	}
	return writeBytes(ctx, conn, b)
}

// unexpected describes a frame that does not belong into a handshake.
func unexpected[P any](f *agentapi.Frame[P], want string) error {
	kind := "Msg"
	switch {
	case f.Exception != nil:
		return &ExceptionError{Message: f.Exception.Message}
	case f.Oob != nil:
		kind = "Oob"
	case f.Ack != nil:
		kind = "Ack"
	}
	return errors.New("frame " + kind + " where " + want + " should be")
}
