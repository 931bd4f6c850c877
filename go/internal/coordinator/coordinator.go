// Package coordinator runs jobs: it serves the agent protocol, plans what evaluations ask for, hands out tasks and
// tells observers what happens. `hci run` has one in its own process; it is what hercules-ci-server will grow from.
//
// It ties together the pure decisions (plan), the memory (store), the logs (logstore) and the protocol
// (agentserver), and must not know how an agent does its work.
package coordinator

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"hercules/internal/coordinator/event"
)

// Config configures a coordinator. The zero value of everything but Dir is fine.
type Config struct {
	// Dir keeps the logs; it is created.
	Dir string
	// Listen is the address of the HTTP listener, by default a free port on the loopback interface.
	Listen string
	// WaitForAgents keeps builds queued for which no connected agent is fit. By default they fail, which is right
	// where the set of agents does not change.
	WaitForAgents bool
	Log           *slog.Logger
}

// Coordinator is a running coordinator.
type Coordinator struct{}

var errTODO = errors.New("not there yet")

// Start listens and serves until Close.
func Start(ctx context.Context, cfg Config) (*Coordinator, error) { return nil, errTODO }

// URL is the apiBaseUrl for agents.
func (c *Coordinator) URL() string { return "" }

// JoinToken is a cluster join token: what an agent's cluster-join-token.key holds.
func (c *Coordinator) JoinToken() string { return "" }

// Submit starts a job and returns its identifier.
func (c *Coordinator) Submit(ctx context.Context, job Job) (string, error) { return "", errTODO }

// Cancel stops a job; it ends with status Cancelled. Unknown and finished jobs are left alone.
func (c *Coordinator) Cancel(job string) {}

// Subscribe streams everything that happens from now on, in order, until stop is called, the coordinator is closed or ctx ends;
// then the channel is closed. State events are never dropped and never wait for the reader; log lines wait when the
// reader is far behind, which slows the agent's log down and nothing else.
func (c *Coordinator) Subscribe(ctx context.Context) (events <-chan event.Event, stop func()) {
	return nil, nil
}

// Wait returns the result of a job when it is finished and its logs have ended (or were given up).
func (c *Coordinator) Wait(ctx context.Context, job string) (*Result, error) { return nil, errTODO }

// OpenLog reads the log of the newest build of a derivation as plain text; follow keeps reading until the log ends.
// The error is fs.ErrNotExist when there was no build.
func (c *Coordinator) OpenLog(ctx context.Context, drv string, follow bool) (io.ReadCloser, error) {
	return nil, errTODO
}

// LogPath is the file with the plain text log of the newest build of a derivation, "" when there is none.
func (c *Coordinator) LogPath(drv string) string { return "" }

// Close stops serving and forgets everything but the logs.
func (c *Coordinator) Close() error { return nil }
