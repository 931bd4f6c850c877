package socket

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/codec"
)

// Store remembers, over restarts of the server, which messages were processed. A nil Store remembers nothing.
type Store interface {
	// Received returns the highest number that was processed, -1 for none.
	Received(ctx context.Context, identity string) (int64, error)
	// SetReceived says that everything up to n was processed. It comes after Receive and before the ack.
	SetReceived(ctx context.Context, identity string, n int64) error
}

// ServerConfig describes the coordinator's end. In is what it receives, Out what it sends.
//
// Requests come to it authorized: wrap [Server] in a handler that refuses the others, and hand on what it
// found out in the request's context.
type ServerConfig[In, Out any] struct {
	// Greeting opens the handshake.
	Greeting func(r *http.Request) Out
	// Identify names the peer that says hello: the start id of an agent, the token of a log (section 3.3).
	// An error refuses it; its text goes to the peer.
	Identify func(r *http.Request, hello In) (identity string, err error)
	// Receive processes the messages of a peer, one at a time and in order. A message is acknowledged when it
	// returned nil, and never comes again. On an error the connection is dropped and the message comes again.
	// It must heed ctx, which ends with the connection: the peer's next connection waits for it.
	Receive func(ctx context.Context, peer *Peer[In, Out], n int64, message In) error
	Store   Store
	// Base is the number of the first message to a peer that this process has not known. It must be higher
	// than any number an earlier process of the server used (section 3.4, rule 1). nil: the time in
	// milliseconds.
	Base func() int64
	// ReadLimit is the size of the largest message in bytes; 0: 256 MiB.
	ReadLimit int64
	Times     Times
	// Connected is called after each handshake, Disconnected when that connection is over. May be nil.
	Connected    func(peer *Peer[In, Out], hello In)
	Disconnected func(peer *Peer[In, Out], err error)
	// Failed is called for connections that end before their handshake is done. May be nil.
	Failed func(r *http.Request, err error)
	// Exception gets a peer's errors for people. May be nil.
	Exception func(peer *Peer[In, Out], message string)
}

// Server is the end that accepts. It is an http.Handler.
type Server[In, Out any] struct {
	cfg    ServerConfig[In, Out]
	ctx    context.Context //nolint:containedctx // the life of the server's connections
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	peers  map[string]*Peer[In, Out]
	closed bool
	wg     sync.WaitGroup
}

// NewServer returns a server.
func NewServer[In, Out any](cfg ServerConfig[In, Out]) *Server[In, Out] {
	cfg.Times = cfg.Times.orDefault(120 * time.Second)
	if cfg.Base == nil {
		cfg.Base = func() int64 { return time.Now().UnixMilli() }
	}
	if cfg.ReadLimit == 0 {
		cfg.ReadLimit = 256 << 20
	}
	s := &Server[In, Out]{cfg: cfg, peers: map[string]*Peer[In, Out]{}}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// Peer is what the server knows of one peer. It survives connections.
type Peer[In, Out any] struct {
	identity string
	out      *outbox

	mu      sync.Mutex
	current *attachment
	// received is the highest number processed. Only the present connection uses it.
	received  int64
	loaded    bool
	forgotten bool
}

// attachment is a connection of a peer.
type attachment struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// Identity is the peer's name.
func (p *Peer[In, Out]) Identity() string { return p.identity }

// Send queues a message, which is kept until the peer acknowledges it. It never blocks. An error means that
// the message has no encoding or that the peer was forgotten.
func (p *Peer[In, Out]) Send(message Out) error {
	payload, err := codec.Marshal(&message)
	if err != nil {
		return err
	}
	return p.out.put(context.Background(), payload)
}

// Connected says whether the peer has a connection now.
func (p *Peer[In, Out]) Connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current != nil
}

// Unacked is the number of messages that the peer has not acknowledged.
func (p *Peer[In, Out]) Unacked() int { return p.out.unacked() }

// Flush waits until the peer has acknowledged all that was sent so far.
func (p *Peer[In, Out]) Flush(ctx context.Context) error { return p.out.drained(ctx) }

// Disconnect drops the peer's connection, if it has one. The peer may come again.
func (p *Peer[In, Out]) Disconnect(cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != nil {
		p.current.cancel(cause)
	}
}

// Peer returns the peer of that name, connected or not.
func (s *Server[In, Out]) Peer(identity string) *Peer[In, Out] {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[identity]
	if p == nil {
		p = &Peer[In, Out]{identity: identity, out: newOutbox(s.cfg.Base(), 0), received: -1}
		s.peers[identity] = p
	}
	return p
}

// Forget drops all that is known of a peer that will not come again, its connection included. Without it the
// memory of every log and of every agent process stays.
func (s *Server[In, Out]) Forget(identity string) {
	s.mu.Lock()
	p := s.peers[identity]
	delete(s.peers, identity)
	s.mu.Unlock()
	if p != nil {
		p.out.close()
		p.mu.Lock()
		p.forgotten = true
		p.mu.Unlock()
		p.Disconnect(ErrClosed)
	}
}

// Close drops all connections and waits for them.
func (s *Server[In, Out]) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel(ErrClosed)
	s.wg.Wait()
}

// ServeHTTP serves one connection until it ends.
func (s *Server[In, Out]) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
		return
	}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		s.failed(r, err)
		return
	}
	defer func() { _ = conn.CloseNow() }()
	conn.SetReadLimit(s.cfg.ReadLimit)
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)

	limit := s.cfg.Times.Handshake
	hctx, hcancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no handshake within %v", limit))
	peer, hello, err := s.hello(hctx, conn, r)
	hcancel()
	if err != nil {
		s.failed(r, err)
		return
	}
	a := &attachment{cancel: cancel, done: make(chan struct{})}
	defer close(a.done)
	peer.attach(a)
	defer peer.detach(a)
	s.connection(ctx, conn, r, peer, hello)
}

func (s *Server[In, Out]) failed(r *http.Request, err error) {
	if s.cfg.Failed != nil {
		s.cfg.Failed(r, err)
	}
}

// hello does the first half of the handshake (section 3.3): it finds out who is there.
func (s *Server[In, Out]) hello(ctx context.Context, conn *websocket.Conn, r *http.Request) (p *Peer[In, Out], hello In, err error) {
	greeting := agentapi.Frame[Out]{Oob: &agentapi.FrameOob[Out]{O: s.cfg.Greeting(r)}}
	if err := writeFrame(ctx, conn, greeting); err != nil {
		return nil, hello, fmt.Errorf("handshake: greeting: %w", err)
	}
	f, err := readFrame[In](ctx, conn, 0)
	if err != nil {
		return nil, hello, fmt.Errorf("handshake: hello: %w", err)
	}
	if f.Oob == nil {
		return nil, hello, fmt.Errorf("handshake: %w", unexpected(f, "hello"))
	}
	identity, err := s.cfg.Identify(r, f.Oob.O)
	if err != nil {
		_ = writeFrame(ctx, conn, agentapi.Frame[Out]{Exception: &agentapi.FrameException{Message: err.Error()}})
		return nil, hello, fmt.Errorf("handshake: %w", err)
	}
	return s.Peer(identity), f.Oob.O, nil
}

// attach makes a the peer's connection and waits for the end of the one before: the peer has given that up.
func (p *Peer[In, Out]) attach(a *attachment) {
	p.mu.Lock()
	before := p.current
	p.current = a
	if p.forgotten {
		a.cancel(ErrClosed)
	}
	p.mu.Unlock()
	if before != nil {
		before.cancel(ErrReplaced)
		<-before.done
	}
}

func (p *Peer[In, Out]) detach(a *attachment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == a {
		p.current = nil
	}
}

// connection does the second half of the handshake and uses the connection until it breaks. No other
// connection of the peer is in use.
func (s *Server[In, Out]) connection(ctx context.Context, conn *websocket.Conn, r *http.Request, p *Peer[In, Out], hello In) {
	if !p.loaded && s.cfg.Store != nil {
		n, err := s.cfg.Store.Received(ctx, p.identity)
		if err != nil {
			s.failed(r, fmt.Errorf("handshake: reading what was received: %w", err))
			return
		}
		p.received = n
	}
	p.loaded = true
	if err := writeBytes(ctx, conn, appendAck(nil, p.received)); err != nil {
		s.failed(r, fmt.Errorf("handshake: ack: %w", err))
		return
	}
	p.out.connected(-1)
	if s.cfg.Connected != nil {
		s.cfg.Connected(p, hello)
	}
	l := &link[In]{conn: conn, out: p.out, times: s.cfg.Times, cumulative: true}
	l.frame = func(ctx context.Context, f *agentapi.Frame[In]) error { return s.frame(ctx, p, l, f) }
	err := l.run(ctx)
	if s.cfg.Disconnected != nil {
		s.cfg.Disconnected(p, err)
	}
}

// frame handles a frame as section 3.4 asks of a coordinator.
func (s *Server[In, Out]) frame(ctx context.Context, p *Peer[In, Out], l *link[In], f *agentapi.Frame[In]) error {
	switch {
	case f.Msg != nil && f.Msg.N <= p.received:
		l.ack(p.received)
	case f.Msg != nil:
		n := f.Msg.N
		if err := s.cfg.Receive(ctx, p, n, f.Msg.P); err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
		p.received = n
		if s.cfg.Store != nil {
			if err := s.cfg.Store.SetReceived(ctx, p.identity, n); err != nil {
				return fmt.Errorf("remembering message %d: %w", n, err)
			}
		}
		l.ack(n)
	case f.Exception != nil:
		if s.cfg.Exception != nil {
			s.cfg.Exception(p, f.Exception.Message)
		}
	case f.Oob != nil:
		return errors.New("an Oob frame after the handshake")
	}
	return nil
}
