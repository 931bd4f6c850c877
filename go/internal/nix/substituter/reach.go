package substituter

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// firstContact bounds the first word with a cache, all attempts included: to do without it costs less than a
	// minute's wait in every evaluation.
	firstContact = 5 * time.Second
	// patience is how long [Reach.Among] waits for the first contact.
	patience = time.Second
	// How long what was found out is relied on.
	upTime, downTime = time.Minute, 10 * time.Second
)

// UnreachableError says that there is nobody to ask: the name of the host is not known, nothing listens there, there
// is no way to it, or no answer came in time at the first contact. Asking again at once is of no use.
type UnreachableError struct{ Err error }

func (e *UnreachableError) Error() string { return e.Err.Error() }

// Unwrap gives the error of the network.
func (e *UnreachableError) Unwrap() error { return e.Err }

var errNoContact = &UnreachableError{errors.New("no answer within " + firstContact.String())}

// unreachable tells whether an error of a request will be the same the next moment.
func unreachable(err error) bool {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return !dns.Timeout()
	}
	for _, e := range []error{syscall.ECONNREFUSED, syscall.ENETUNREACH, syscall.EHOSTUNREACH} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Reach knows which caches can be reached, for those who hand a list of them to Nix: a Nix daemon tries a host that is
// not there for several seconds, in each of its processes, before it does without.
//
// It looks when it is asked and what it knows is old, but only the first time does anybody wait for it. Of caches that
// are not behind HTTP nothing is known, and they count as reachable. The zero value is not ready; see [NewReach].
type Reach struct {
	options Options
	ctx     context.Context //nolint:containedctx // its own life, which contacts share
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu     sync.Mutex
	states map[string]*contact
}

type contact struct {
	err   error     // why it cannot be reached; nil when it can
	at    time.Time // when that was found out
	first chan struct{}
	busy  bool
}

// NewReach makes a Reach that opens caches with these options. Close it.
func NewReach(o Options) *Reach {
	r := &Reach{options: o, states: map[string]*contact{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Close ends what is under way.
func (r *Reach) Close() {
	r.cancel()
	r.wg.Wait()
}

// Learn begins to look at caches that are not known, or not any more. It does not wait.
func (r *Reach) Learn(uris []string) { r.learn(uris) }

// learn gives what is closed when the first contact with each cache is over.
func (r *Reach) learn(uris []string) (first []chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, uri := range uris {
		if !strings.HasPrefix(uri, "http://") && !strings.HasPrefix(uri, "https://") {
			continue
		}
		c := r.states[uri]
		if c == nil {
			c = &contact{first: make(chan struct{})}
			r.states[uri] = c
		}
		relied := upTime
		if c.err != nil {
			relied = downTime
		}
		if !c.busy && time.Since(c.at) > relied && r.ctx.Err() == nil {
			c.busy = true
			r.wg.Go(func() { r.look(uri, c) })
		}
		first = append(first, c.first)
	}
	return first
}

// Among parts the URIs into those that are worth trying and those that are not, both in order. It waits for caches that
// it has not met before, a second at most.
func (r *Reach) Among(ctx context.Context, uris []string) (usable []string, failed []*Failure) {
	waits := r.learn(uris)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, first := range waits {
		select {
		case <-first:
		case <-ctx.Done():
		case <-r.ctx.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, uri := range uris {
		if c := r.states[uri]; c != nil && c.err != nil {
			failed = append(failed, &Failure{uri, c.err})
		} else {
			usable = append(usable, uri)
		}
	}
	return usable, failed
}

// Failure is a cache that cannot be reached.
type Failure struct {
	URI string
	Err error
}

func (r *Reach) look(uri string, c *contact) {
	err := r.contact(uri)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, down := errors.AsType[*UnreachableError](err); !down {
		err = nil // It answers, if only with an error.
	}
	c.err, c.busy = err, false
	if c.at.IsZero() {
		close(c.first)
	}
	c.at = time.Now()
}

func (r *Reach) contact(uri string) error {
	s, err := Open(r.ctx, uri, r.options)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	cache, ok := s.(*BinaryCache)
	if !ok {
		return nil
	}
	_, err = cache.Info(r.ctx)
	return err
}
