// Package agent is the agent: it joins a coordinator, takes tasks from it, has them done by packages evaluate and
// build, and reports.
//
// [Run] is a function without global state: the program hercules-ci-agent calls it through [Serve], which adds what a
// service of the operating system needs (signals, limits, notifications), and a program that brings its own
// coordinator calls it as it is. The package knows nothing of how evaluations and builds are done.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"hercules/internal/agent/setup"
	"hercules/internal/build"
	"hercules/internal/config"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/localstore"
	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/socket"
)

// Options of an agent. The zero value is fine.
type Options struct {
	// Log is the agent's own log. Nil discards.
	Log *slog.Logger
	// Drain asks the agent to leave when it is closed: no new task is begun, those that run may end within the
	// configured time, and the coordinator is told. The end of Run's context stops everything at once.
	Drain <-chan struct{}
	// Started is closed when the start is over: the agent connects, and takes notice of Drain. May be nil.
	Started chan<- struct{}
	// Reload asks the agent with each value to read again what it reads again when it changes: the binary caches and
	// the netrc. May be nil.
	Reload <-chan struct{}
	// Service is told about the life of the agent. May be nil.
	Service Service
	// Store is the way to the Nix store; nil means that it is looked for.
	Store *localstore.Store
	// NixProgram is the nix program; empty means "nix" from PATH.
	NixProgram string
	// Env is the environment of Nix programs; nil means the process's own.
	Env []string
	// Transport carries HTTP requests; nil means the default, with proxies from the environment.
	Transport http.RoundTripper
	// Times are those of the protocol where they are zero.
	Times Times
}

// Times of the protocol, to be shortened by tests and on a loopback connection.
type Times struct {
	Socket socket.Times
	// Poll is how often the coordinator is asked about a build that an evaluation needs.
	Poll time.Duration
	// Batch is how long evaluation events are collected.
	Batch time.Duration
	// LogDelivery is how long the log of a finished task may be on its way.
	LogDelivery time.Duration
	// Goodbye is how long the agent tries to take its leave.
	Goodbye time.Duration
}

// Service is the service manager.
type Service interface {
	// Ready is called when the agent is connected for the first time.
	Ready(status string)
	// Status is one line for people.
	Status(status string)
	// Stopping is called when the agent begins to leave.
	Stopping(status string)
	// Watch asks alive regularly until ctx ends.
	Watch(ctx context.Context, alive func(context.Context) error)
}

// agent is a running agent.
type agent struct {
	*environment
	cfg        *config.Config
	opt        Options
	log        *slog.Logger
	ctx        context.Context // ends: stop now
	nixInfo    nixInfo
	startInfo  agentapi.StartInfo
	tasks      *tasks
	conns      *build.Conns
	setups     *setup.Holder
	work       work
	introduced introduced
	status     *status
}

var errStopped = errors.New("the agent was stopped")

// Run is an agent from its start to its end. It returns nil when it ended because it was asked to, through ctx or
// [Options].Drain, and an error when it could not start.
func Run(ctx context.Context, cfg *config.Config, opt Options) error {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Service == nil {
		opt.Service = noService{}
	}
	cfg = complete(cfg)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	a := &agent{cfg: cfg, opt: opt, log: opt.Log, ctx: ctx, status: &status{service: opt.Service}}
	err := a.run(stop)
	if ctx.Err() != nil {
		return nil // Asked to stop while it started.
	}
	return err
}

func (a *agent) run(stop context.CancelCauseFunc) error {
	var err error
	if a.environment, err = prepare(a.ctx, a.cfg, a.opt); err != nil {
		return err
	}
	sweep(a.cfg.WorkDirectory, a.log)
	nix, err := a.openStore()
	if err != nil {
		return err
	}
	a.nixInfo = nix
	first, err := setup.New(a.secure, a.nix, a.cfg.NixSettings, a.caches, a.operator)
	if err != nil {
		return err
	}
	if err := a.openPusher(first); err != nil {
		first.Remove(a.log)
		return err
	}
	a.setups = setup.NewHolder(a.log, first)
	defer a.setups.Replace(nil)
	a.work = a.prepareWork()
	defer a.work.caches.CloseIdleConnections()
	defer a.work.reach.Close()
	a.work.reach.Learn(first.Substituters)
	session, err := a.session()
	if err != nil {
		return err
	}
	a.api = a.api.WithToken(session.Reveal())
	defer a.api.CloseIdle()
	a.startInfo = agentapi.StartInfo{ID: agentapi.ID(uuid.NewString()), StartTime: time.Now().UTC()}

	a.tasks = newTasks(a.ctx, int(a.cfg.ConcurrentTasks), a.log)
	a.tasks.notify = a.status.tasks
	a.tasks.status = a.api.PostTaskStatus
	a.tasks.open = (&logs{
		ctx:      a.ctx,
		url:      a.urls.logs,
		hello:    agentapi.LogHello{StoreProtocolVersion: int64(nix.daemon), ClientProtocolVersion: int64(nix.client)},
		times:    a.opt.Times.Socket,
		delivery: or(a.opt.Times.LogDelivery, logDelivery),
	}).open
	a.conns = build.NewConns(a.store.Endpoint, nix.trusted)
	defer a.conns.Close()

	sock := a.newSocket(session.Reveal())
	a.tasks.send = sock.Send
	// The first ping tells that messages arrive, in both directions, before there is any work (protocol 1.1).
	if err := sock.Send(a.ctx, agentapi.AgentPayload{Ping: &agentapi.Unit{}}); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = sock.Run(a.ctx)
	}()
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		a.opt.Service.Watch(a.ctx, a.tasks.alive)
	}()
	reloading := make(chan struct{})
	go func() {
		defer close(reloading)
		a.watchFiles(a.ctx)
	}()
	if a.opt.Started != nil {
		close(a.opt.Started)
	}
	select {
	case <-a.ctx.Done():
		a.opt.Service.Stopping("stopping")
	case <-a.opt.Drain:
		a.leave(sock)
	}
	stop(errStopped)
	a.tasks.wait()
	<-done
	<-watching
	<-reloading
	a.log.Info("agent ended")
	return nil
}

// leave ends what can be ended in time, and says goodbye.
func (a *agent) leave(sock *agentSocket) {
	a.log.Info("agent is leaving", "limit", a.cfg.DrainTimeout())
	a.status.stopping()
	limit, cancel := context.WithTimeout(a.ctx, a.cfg.DrainTimeout())
	defer cancel()
	a.tasks.drain(limit)
	if a.ctx.Err() != nil {
		return
	}
	// Until the coordinator knows, it would wait for tasks that were handed back. It also notices by itself in the end,
	// so an unreachable one does not keep us for ever.
	bye, cancel := context.WithTimeout(a.ctx, or(a.opt.Times.Goodbye, 30*time.Second))
	defer cancel()
	if err := a.api.Goodbye(bye, a.startInfo); err != nil {
		a.log.Warn("the coordinator was not told that this agent leaves", "error", err)
	}
	flush, cancel := context.WithTimeout(a.ctx, 2*time.Second)
	defer cancel()
	_ = sock.Close(flush)
}

// nixInfo is what a connection to the daemon tells.
type nixInfo struct {
	version        string
	client, daemon int // protocol versions
	trusted        bool
}

// openStore finds the store and looks whether it can be used.
func (a *agent) openStore() (nixInfo, error) {
	store := a.opt.Store
	if store == nil {
		s, err := localstore.Find(a.ctx, localstore.Options{
			Setting: a.nix.Get, Getenv: a.getenv,
			Program: func(name string) (string, error) { return exec.LookPath(a.program(name)) },
		})
		if err != nil {
			return nixInfo{}, err
		}
		store = &s
	}
	a.store = *store
	c, err := a.dial()
	if err != nil {
		return nixInfo{}, fmt.Errorf("the Nix store cannot be used through %s: %w", a.store.Why, err)
	}
	defer func() { _ = c.Close() }()
	n := nixInfo{version: c.DaemonVersion()}
	n.client, n.daemon = c.ProtocolVersion()
	// Daemons before Nix 2.15 do not say whether they trust us. One of our own does, and any trusts root, unless its
	// default was changed.
	declared, spawned := a.cfg.NixUserIsTrusted, len(a.store.Endpoint.Command) > 0
	n.trusted = c.Trusted() == daemon.Trusted || c.Trusted() == daemon.TrustUnknown && (declared || spawned || os.Geteuid() == 0)
	switch {
	case declared && c.Trusted() == daemon.NotTrusted:
		a.log.Warn("nixUserIsTrusted is set, but the Nix daemon does not trust this user; add it to trusted-users in nix.conf")
	case !declared && n.trusted:
		a.log.Info("the Nix daemon trusts this user; with nixUserIsTrusted builds need less of their closure")
	case !declared:
		a.log.Warn("this user is not trusted by the Nix daemon: caches are only used for substitution when nix.conf names them; " +
			"add the user to trusted-users in nix.conf and set nixUserIsTrusted; hci cache check says what else is missing")
	}
	a.log.Info("store opened", "store", a.store.Why, "nix", n.version, "protocol", fmt.Sprintf("%d.%d", n.daemon>>8, n.daemon&0xff))
	return n, nil
}

// dial connects to the daemon. One that closes the connection at once gets two more chances: it does so while somebody
// else makes or upgrades the database of its store, as on the first use of a machine.
func (a *agent) dial() (c *daemon.Conn, err error) {
	for _, pause := range []time.Duration{0, 300 * time.Millisecond, time.Second} {
		select {
		case <-time.After(pause):
		case <-a.ctx.Done():
			return nil, context.Cause(a.ctx)
		}
		c, err = daemon.Dial(a.ctx, a.store.Endpoint, daemon.Options{Settings: a.nix.Overridden()})
		if _, closed := errors.AsType[*daemon.ClosedError](err); !closed {
			return c, err
		}
	}
	return nil, err
}

// complete fills in what a configuration that was not loaded from a file may leave open.
func complete(cfg *config.Config) *config.Config {
	c := *cfg
	if c.ConcurrentTasks <= 0 {
		c.ConcurrentTasks = config.Count(max(2, runtime.NumCPU()))
	}
	if c.EvaluationWorkers <= 0 {
		c.EvaluationWorkers = runtime.NumCPU()
	}
	return &c
}

// program is a program of Nix that belongs to NixProgram; others are looked for in PATH.
func (a *agent) program(name string) string {
	if strings.HasPrefix(name, "nix") && filepath.IsAbs(a.opt.NixProgram) {
		return filepath.Join(filepath.Dir(a.opt.NixProgram), name)
	}
	return name
}

// getenv reads the environment of Nix programs.
func (a *agent) getenv(name string) string {
	if a.opt.Env == nil {
		return os.Getenv(name)
	}
	for _, e := range slices.Backward(a.opt.Env) {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

func or[T comparable](a, b T) T {
	var zero T
	if a != zero {
		return a
	}
	return b
}
