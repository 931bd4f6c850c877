package socket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/codec"
)

// inboxSize is how many received messages may wait for Receive before reading stops.
const inboxSize = 1000

// AgentConfig describes the agent's end. In is what it receives, Out what it sends.
type AgentConfig[In, Out any] struct {
	// URL of the socket, with scheme http, https, ws or wss.
	URL string
	// Token is the bearer token.
	Token string
	// Transport connects; nil: directly, as websockets use no proxy (section 2.1).
	Transport http.RoundTripper
	// Greeting checks the other side's greeting. The text of an error is sent as an Exception. May be nil.
	Greeting func(In) error
	// Hello is the answer to the greeting, made anew for each connection.
	Hello func() Out
	// Receive takes the messages, one at a time and in order. The next one waits; acknowledging does not.
	Receive func(ctx context.Context, message In)
	// KeepAlive is sent every Times.KeepAlive while connected. May be nil.
	KeepAlive func() Out
	// Queue is how many messages that were never sent may wait before Send blocks; 0: 100.
	Queue int
	Times Times
	// Connected and Disconnected follow the state; Exception gets the other side's errors for people. May be nil.
	Connected    func()
	Disconnected func(err error)
	Exception    func(message string)
}

// Agent is the end that connects.
type Agent[In, Out any] struct {
	cfg      AgentConfig[In, Out]
	out      *outbox
	inbox    chan In
	received int64 // highest number accepted; only the present connection uses it
	stop     chan struct{}
	stopOnce sync.Once
	done     chan struct{}
	runOnce  sync.Once
}

// NewAgent returns an agent's end. [Agent.Run] connects it; messages may be sent before.
func NewAgent[In, Out any](cfg AgentConfig[In, Out]) *Agent[In, Out] {
	cfg.Times = cfg.Times.orDefault(60 * time.Second)
	if cfg.Queue == 0 {
		cfg.Queue = 100
	}
	return &Agent[In, Out]{
		cfg: cfg, out: newOutbox(0, cfg.Queue), inbox: make(chan In, inboxSize), received: -1,
		stop: make(chan struct{}), done: make(chan struct{}),
	}
}

// Send queues a message. It blocks while the queue is full. An error means that it will not be sent: ctx
// ended, the socket is closed, or the message has no encoding.
func (a *Agent[In, Out]) Send(ctx context.Context, message Out) error {
	payload, err := codec.Marshal(&message)
	if err != nil {
		return err
	}
	return a.out.put(ctx, payload)
}

// Flush waits until all that was sent so far is acknowledged.
func (a *Agent[In, Out]) Flush(ctx context.Context) error { return a.out.drained(ctx) }

// Close refuses further messages, waits until all are acknowledged or ctx ends, and ends Run. It returns an
// error when messages may be lost.
func (a *Agent[In, Out]) Close(ctx context.Context) error {
	a.out.close()
	err := a.drainOrDone(ctx)
	a.stopOnce.Do(func() { close(a.stop) })
	a.runOnce.Do(func() { close(a.done) }) // never ran
	<-a.done
	return err
}

func (a *Agent[In, Out]) drainOrDone(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-a.done:
			cancel(ErrClosed)
		case <-stop:
		}
	})
	err := a.out.drained(ctx)
	close(stop)
	wg.Wait()
	if err != nil {
		return fmt.Errorf("%d messages were not acknowledged: %w", a.out.unacked(), err)
	}
	return nil
}

// Run keeps the socket connected until ctx ends or Close is called. It may be called once.
func (a *Agent[In, Out]) Run(ctx context.Context) error {
	first := false
	a.runOnce.Do(func() { first = true })
	if !first {
		return ErrClosed
	}
	defer close(a.done)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() {
		select {
		case <-a.stop:
			cancel(ErrClosed)
		case <-ctx.Done():
		}
	})
	wg.Go(func() { a.dispatch(ctx) })
	for {
		err := a.connection(ctx)
		if a.cfg.Disconnected != nil {
			a.cfg.Disconnected(err)
		}
		if ctx.Err() == nil && !errors.Is(err, ErrNoAck) {
			select {
			case <-time.After(a.cfg.Times.Reconnect):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			if err := context.Cause(ctx); !errors.Is(err, ErrClosed) {
				return err
			}
			return nil
		}
	}
}

// dispatch hands the messages on, so that a slow receiver does not keep acknowledgements from being read.
func (a *Agent[In, Out]) dispatch(ctx context.Context) {
	for {
		select {
		case m := <-a.inbox:
			a.cfg.Receive(ctx, m)
		case <-ctx.Done():
			return
		}
	}
}

// connection makes one connection and uses it until it breaks.
func (a *Agent[In, Out]) connection(ctx context.Context) error {
	conn, acked, err := a.connect(ctx)
	if err != nil {
		return err
	}
	a.out.connected(acked)
	if a.cfg.Connected != nil {
		a.cfg.Connected()
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { a.keepAlive(ctx) })
	l := &link[In]{conn: conn, out: a.out, times: a.cfg.Times}
	l.frame = func(ctx context.Context, f *agentapi.Frame[In]) error { return a.frame(ctx, l, f) }
	return l.run(ctx)
}

// connect opens the websocket and does the handshake. It returns what the other side has.
func (a *Agent[In, Out]) connect(ctx context.Context) (*websocket.Conn, int64, error) {
	limit := a.cfg.Times.Handshake
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no connection and handshake within %v", limit))
	defer cancel()
	conn, err := a.dial(ctx)
	if err != nil {
		return nil, 0, err
	}
	acked, err := a.handshake(ctx, conn)
	if err != nil {
		_ = conn.CloseNow()
		return nil, 0, fmt.Errorf("handshake: %w", err)
	}
	return conn, acked, nil
}

// handshake is that of section 3.3: greeting, hello, ack, and nothing else.
func (a *Agent[In, Out]) handshake(ctx context.Context, conn *websocket.Conn) (acked int64, err error) {
	greeting, err := readFrame[In](ctx, conn, 0)
	if err != nil {
		return 0, fmt.Errorf("greeting: %w", err)
	}
	if greeting.Oob == nil {
		return 0, unexpected(greeting, "the greeting")
	}
	if a.cfg.Greeting != nil {
		if err := a.cfg.Greeting(greeting.Oob.O); err != nil {
			_ = writeFrame(ctx, conn, agentapi.Frame[Out]{Exception: &agentapi.FrameException{Message: err.Error()}})
			return 0, err
		}
	}
	if err := writeFrame(ctx, conn, agentapi.Frame[Out]{Oob: &agentapi.FrameOob[Out]{O: a.cfg.Hello()}}); err != nil {
		return 0, fmt.Errorf("hello: %w", err)
	}
	ack, err := readFrame[In](ctx, conn, 0)
	if err != nil {
		return 0, fmt.Errorf("ack: %w", err)
	}
	if ack.Ack == nil {
		return 0, unexpected(ack, "Ack")
	}
	return ack.Ack.N, nil
}

func (a *Agent[In, Out]) dial(ctx context.Context) (*websocket.Conn, error) {
	transport := a.cfg.Transport
	if transport == nil {
		transport = directTransport
	}
	conn, resp, err := websocket.Dial(ctx, a.cfg.URL, &websocket.DialOptions{
		HTTPClient: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		HTTPHeader: http.Header{"Authorization": {"Bearer " + a.cfg.Token}},
	})
	if err == nil {
		conn.SetReadLimit(-1) // section 3.1: no limit on the agent's side
		return conn, nil
	}
	where := withoutQuery(a.cfg.URL)
	switch {
	case resp != nil && resp.StatusCode != http.StatusSwitchingProtocols:
		// Dial leaves the first kilobyte of the body.
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		text := strings.TrimSpace(strings.ToValidUTF8(string(body), "\uFFFD"))
		if a.cfg.Token != "" {
			text = strings.ReplaceAll(text, a.cfg.Token, "[redacted]")
		}
		return nil, &RefusedError{URL: where, Status: resp.StatusCode, Body: text}
	case ctx.Err() != nil:
		return nil, fmt.Errorf("connecting to %s: %w", where, context.Cause(ctx))
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // it holds the URL once more, with its query
	}
	return nil, fmt.Errorf("connecting to %s: %w", where, err)
}

// directTransport uses no proxy (section 2.1) and HTTP/1.1 only, as websockets need it.
var directTransport = func() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = nil
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.DisableKeepAlives = true
	return t
}()

func withoutQuery(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "the socket's URL"
	}
	u.RawQuery, u.User = "", nil
	return u.String()
}

func (a *Agent[In, Out]) keepAlive(ctx context.Context) {
	if a.cfg.KeepAlive == nil {
		return
	}
	ticker := time.NewTicker(a.cfg.Times.KeepAlive)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if payload, err := codec.Marshal(new(a.cfg.KeepAlive())); err == nil {
				a.out.tryPut(payload)
			}
		case <-ctx.Done():
			return
		}
	}
}

// frame handles a frame as section 3.4 asks of a receiving agent.
func (a *Agent[In, Out]) frame(ctx context.Context, l *link[In], f *agentapi.Frame[In]) error {
	deliver := func(m In) error {
		select {
		case a.inbox <- m:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	switch {
	case f.Msg != nil:
		if f.Msg.N > a.received {
			if err := deliver(f.Msg.P); err != nil {
				return err
			}
			a.received = f.Msg.N
		}
		l.ack(f.Msg.N) // also of a repetition
	case f.Oob != nil:
		return deliver(f.Oob.O)
	case f.Exception != nil:
		if a.cfg.Exception != nil {
			a.cfg.Exception(f.Exception.Message)
		}
	}
	return nil
}
