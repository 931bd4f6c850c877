package socket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"pgregory.net/rapid"

	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/socket"
)

// pipeListener is a network in memory, so that tests run in a bubble with a clock of its own.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) transport(wrap func(net.Conn) net.Conn) *http.Transport {
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := l.dial(ctx)
			if err == nil && wrap != nil {
				c = wrap(c)
			}
			return c, err
		},
	}
}

// serve runs an HTTP server on the listener until the test's cleanup.
func (l *pipeListener) serve(h http.Handler) (stop func()) {
	srv := &http.Server{Handler: h} //nolint:gosec // in memory
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	return func() {
		_ = srv.Close()
		_ = l.Close()
		wg.Wait()
	}
}

// chaos is what goes wrong on the way. All numbers are chances in 100 for one message.
type chaos struct {
	cut, hang, delay, twice int
	bytes                   int // the connection breaks after about that many bytes; 0: never
	until                   time.Time
	seed                    uint64

	mu    sync.Mutex
	count uint64
	wg    sync.WaitGroup // of the proxy
}

func (c *chaos) rand() *rand.Rand {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	return rand.New(rand.NewPCG(c.seed, c.count)) //nolint:gosec // a test
}

func (c *chaos) over() bool { return time.Now().After(c.until) }

// breaking is a connection that breaks in the middle of a message.
type breaking struct {
	net.Conn
	mu   sync.Mutex
	left int
}

func (b *breaking) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < 0 {
		return b.Conn.Write(p)
	}
	if len(p) <= b.left {
		b.left -= len(p)
		return b.Conn.Write(p)
	}
	n, _ := b.Conn.Write(p[:b.left])
	b.left = 0
	_ = b.Conn.Close()
	return n, io.ErrClosedPipe
}

func (c *chaos) wrap(conn net.Conn) net.Conn {
	if c.bytes == 0 || c.over() {
		return conn
	}
	return &breaking{Conn: conn, left: 300 + c.rand().IntN(c.bytes)}
}

// proxy passes websocket messages between agent and server, badly.
func (c *chaos) proxy(upstream *http.Transport) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.wg.Add(1)
		defer c.wg.Done()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		agent, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer agent.CloseNow() //nolint:errcheck // a test
		server, _, err := websocket.Dial(ctx, "http://server/", &websocket.DialOptions{
			HTTPClient: &http.Client{Transport: upstream}, HTTPHeader: http.Header{"Authorization": r.Header["Authorization"]},
		})
		if err != nil {
			return
		}
		defer server.CloseNow() //nolint:errcheck // a test
		agent.SetReadLimit(-1)
		server.SetReadLimit(-1)
		// When one direction breaks, all is closed; when it hangs, it stays open and silent.
		var wg sync.WaitGroup
		wg.Go(func() { defer cancel(); c.copy(ctx, server, agent) })
		wg.Go(func() { defer cancel(); c.copy(ctx, agent, server) })
		wg.Wait()
	})
}

func (c *chaos) copy(ctx context.Context, to, from *websocket.Conn) {
	rnd := c.rand()
	hanging := false
	for {
		typ, data, err := from.Read(ctx)
		if err != nil {
			return
		}
		if hanging {
			continue
		}
		times := 1
		if !c.over() {
			switch {
			case rnd.IntN(100) < c.cut:
				return
			case rnd.IntN(100) < c.hang:
				hanging = true
				continue
			case rnd.IntN(100) < c.delay:
				select {
				case <-time.After(time.Duration(rnd.IntN(90_000)) * time.Millisecond):
				case <-ctx.Done():
					return
				}
			}
			// Only numbered messages and acks may come twice.
			if !bytes.Contains(data, []byte(`"Oob"`)) && rnd.IntN(100) < c.twice {
				times = 2
			}
		}
		for range times {
			if to.Write(ctx, typ, data) != nil {
				return
			}
		}
	}
}

// memory is a Store, which outlives a server.
type memory struct {
	mu sync.Mutex
	n  map[string]int64
}

func (m *memory) Received(_ context.Context, identity string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n, ok := m.n[identity]; ok {
		return n, nil
	}
	return -1, nil
}

func (m *memory) SetReceived(_ context.Context, identity string, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n[identity] = n
	return nil
}

// Small payloads for tests.
type (
	up struct {
		Hello *hello
		Say   *word
		Ping  *agentapi.Unit
	}
	down struct {
		Welcome *agentapi.Unit
		Say     *word
	}
	hello struct {
		ID string `json:"id"`
	}
	word struct {
		Number int64  `json:"number"`
		Fill   string `json:"fill"`
	}
)

func serverConfig() socket.ServerConfig[up, down] {
	return socket.ServerConfig[up, down]{
		Greeting: func(*http.Request) down { return down{Welcome: &agentapi.Unit{}} },
		Identify: func(_ *http.Request, h up) (string, error) {
			if h.Hello == nil {
				return "", errors.New("no hello")
			}
			return h.Hello.ID, nil
		},
		Receive: func(context.Context, *socket.Peer[up, down], int64, up) error { return nil },
	}
}

func agentConfig(rt http.RoundTripper) socket.AgentConfig[down, up] {
	return socket.AgentConfig[down, up]{
		URL: "http://server/", Token: "secret-token", Transport: rt,
		Hello:     func() up { return up{Hello: &hello{ID: "one"}} },
		KeepAlive: func() up { return up{Ping: &agentapi.Unit{}} },
		Receive:   func(context.Context, down) {},
	}
}

// inOrder checks that numbers come as 0, 1, 2, …
type inOrder struct {
	mu   sync.Mutex
	next int64
	bad  error
	full chan struct{}
	want int64
}

func newInOrder(want int64) *inOrder { return &inOrder{want: want, full: make(chan struct{})} }

func (o *inOrder) got(n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n != o.next && o.bad == nil {
		o.bad = fmt.Errorf("message %d came where %d should be", n, o.next)
	}
	if o.next++; o.next == o.want {
		close(o.full)
	}
}

func (o *inOrder) check(t interface{ Fatalf(string, ...any) }, what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.bad != nil || o.next != o.want {
		t.Fatalf("%s: %v; %d of %d messages", what, o.bad, o.next, o.want)
	}
}

// TestExactlyOnceInOrder: whatever happens on the way, every message arrives once and in order, in both
// directions.
func TestExactlyOnceInOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		c := &chaos{
			cut: rapid.IntRange(0, 10).Draw(rt, "cut"), hang: rapid.IntRange(0, 3).Draw(rt, "hang"),
			delay: rapid.IntRange(0, 5).Draw(rt, "delay"), twice: rapid.IntRange(0, 30).Draw(rt, "twice"),
			bytes: rapid.SampledFrom([]int{0, 800, 5000}).Draw(rt, "bytes"),
			seed:  rapid.Uint64().Draw(rt, "seed"),
		}
		ups, downs := rapid.Int64Range(1, 60).Draw(rt, "ups"), rapid.Int64Range(1, 60).Draw(rt, "downs")
		failing := rapid.IntRange(0, 10).Draw(rt, "failing")
		restart := rapid.Bool().Draw(rt, "restart")
		synctest.Test(t, func(t *testing.T) { exchange(t, c, ups, downs, failing, restart) })
	})
}

func exchange(t *testing.T, c *chaos, ups, downs int64, failing int, restart bool) {
	c.until = time.Now().Add(20 * time.Minute)
	gotUp, gotDown := newInOrder(ups), newInOrder(downs)
	cfg := serverConfig()
	cfg.Store = &memory{n: map[string]int64{}}
	rnd := c.rand()
	var busy atomic.Bool
	cfg.Receive = func(_ context.Context, _ *socket.Peer[up, down], _ int64, m up) error {
		if busy.Swap(true) {
			t.Error("two messages of one peer at once")
		}
		defer busy.Store(false)
		if !c.over() && rnd.IntN(100) < failing {
			// Slow, and deaf to the end of its connection.
			time.Sleep(time.Duration(rnd.IntN(40)) * time.Second)
			if rnd.IntN(2) == 0 {
				return errors.New("the disk is full")
			}
		}
		if m.Say != nil {
			gotUp.got(m.Say.Number)
		}
		return nil
	}
	listener := newPipeListener()
	server := socket.NewServer(cfg)
	var current sync.RWMutex
	stopServer := listener.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		current.RLock()
		s := server
		current.RUnlock()
		s.ServeHTTP(w, r)
	}))
	defer stopServer()
	between := newPipeListener()
	stopProxy := between.serve(c.proxy(listener.transport(c.wrap)))
	defer stopProxy()

	acfg := agentConfig(between.transport(c.wrap))
	acfg.Queue = 10
	acfg.Receive = func(_ context.Context, m down) {
		if m.Say != nil {
			gotDown.got(m.Say.Number)
		}
	}
	agent := socket.NewAgent(acfg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = agent.Run(ctx) })
	fill := string(bytes.Repeat([]byte("x"), 100))
	wg.Go(func() {
		for n := range ups {
			if err := agent.Send(ctx, up{Say: &word{Number: n, Fill: fill}}); err != nil {
				t.Errorf("send: %v", err)
			}
			time.Sleep(time.Duration(c.rand().IntN(10)) * time.Second)
		}
	})
	half := make(chan struct{})
	wg.Go(func() {
		p := server.Peer("one")
		for n := range downs {
			if restart && n == downs/2 {
				// The messages of a server are kept by the process, so it stops when all are acknowledged.
				if err := p.Flush(ctx); err != nil {
					t.Errorf("flush: %v", err)
				}
				time.Sleep(time.Second) // the numbers of the next server start at its time in milliseconds
				next := socket.NewServer(cfg)
				current.Lock()
				old := server
				server = next
				current.Unlock()
				old.Close()
				p = next.Peer("one")
			}
			if err := p.Send(down{Say: &word{Number: n, Fill: fill}}); err != nil {
				t.Errorf("send: %v", err)
			}
			time.Sleep(time.Duration(c.rand().IntN(10)) * time.Second)
		}
		close(half)
	})
	limit := time.After(2 * time.Hour)
	for _, full := range []chan struct{}{gotUp.full, gotDown.full, half} {
		select {
		case <-full:
		case <-limit:
		}
	}
	closing, stop := context.WithTimeout(ctx, 10*time.Minute)
	if err := agent.Close(closing); err != nil {
		t.Errorf("close: %v", err)
	}
	stop()
	cancel()
	wg.Wait()
	server.Close()
	c.wg.Wait()
	gotUp.check(t, "to the server")
	gotDown.check(t, "to the agent")
}
