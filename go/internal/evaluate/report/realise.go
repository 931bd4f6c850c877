package report

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"hercules/internal/nix/daemon"
	"hercules/internal/wire/agentapi"
)

// DefaultPoll is the pause between questions about a build: agent protocol, section 2.4.
const DefaultPoll = time.Second

// BuildError says that what the evaluation needs could not be built.
type BuildError struct {
	Derivation string
	// Reason for people.
	Reason string
}

func (e *BuildError) Error() string {
	return "the derivation " + e.Derivation + ", whose output is required during evaluation, could not be built: " + e.Reason
}

// Store is the store that the evaluation uses.
type Store interface {
	IsValidPath(ctx context.Context, path string) (bool, error)
	// EnsurePath makes the path valid by substitution. An unavailable path is no error but a reason why not; an
	// error means that the store cannot be asked.
	EnsurePath(ctx context.Context, path string) (unavailable, err error)
	// AddTempRoot keeps the path for as long as the evaluation lasts.
	AddTempRoot(ctx context.Context, path string) error
}

// RealiserConfig is what a Realiser needs.
type RealiserConfig struct {
	Events  *Collector
	Planner *Planner
	Read    ReadDerivation
	Store   Store
	// BuildStatus asks the coordinator about a build: nil while it is not planned. It retries by itself.
	BuildStatus func(ctx context.Context, drv string) (*agentapi.EvalBuild, error)
	// Poll is the pause between such questions; 0 is DefaultPoll.
	Poll time.Duration
	// Fail is told of a failure that is not the build's own and that is fatal for the evaluation. May be nil.
	Fail func(error)
}

// Realiser gets outputs that an evaluation needs built by the coordinator: agent behaviour, section 3.9. It does so
// once for each output.
type Realiser struct {
	cfg RealiserConfig
	ctx context.Context //nolint:containedctx // that of the evaluation: work goes on when one who asked goes away
	wg  sync.WaitGroup

	mu sync.Mutex
	// outputs by derivation and name, builds and rebuilds by derivation.
	outputs, builds, rebuilds map[string]*flight
}

// flight is work that is done once and that several may wait for.
type flight struct {
	done    chan struct{}
	attempt agentapi.ID
	err     error
}

// NewRealiser makes a Realiser whose work ends with ctx.
func NewRealiser(ctx context.Context, cfg RealiserConfig) *Realiser {
	if cfg.Poll <= 0 {
		cfg.Poll = DefaultPoll
	}
	return &Realiser{cfg: cfg, ctx: ctx, outputs: map[string]*flight{}, builds: map[string]*flight{}, rebuilds: map[string]*flight{}}
}

// Realise makes the outputs valid in the store. A plain store path is left to the store. The failure of a build is a
// *BuildError.
func (r *Realiser) Realise(ctx context.Context, p daemon.DerivedPath) error {
	if len(p.Outputs) == 0 {
		return nil
	}
	drv, err := r.cfg.Read(ctx, p.Path)
	if err != nil {
		// An expression can name a derivation that is not there. The store's error for that is the expression's.
		return nil //nolint:nilerr // see above
	}
	var flights []*flight
	for _, name := range slices.Sorted(maps.Keys(drv.Outputs)) {
		if slices.Contains(p.Outputs, name) || slices.Contains(p.Outputs, "*") {
			path := strings.Clone(drv.Outputs[name].Path)
			flights = append(flights, r.once(r.outputs, p.Path+"!"+name, func() (agentapi.ID, error) {
				return "", r.output(p.Path, name, path)
			}))
		}
	}
	for _, f := range flights {
		select {
		case <-f.done:
			if f.err != nil {
				return f.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Wait returns when nothing is being realised any more. End the context before.
func (r *Realiser) Wait() { r.wg.Wait() }

func (r *Realiser) once(in map[string]*flight, key string, work func() (agentapi.ID, error)) *flight {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := in[key]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		in[key] = f
		r.wg.Go(func() {
			defer close(f.done)
			f.err = guard(func() (err error) {
				f.attempt, err = work()
				return err
			})
		})
	}
	return f
}

func (r *Realiser) wait(f *flight) (agentapi.ID, error) {
	select {
	case <-f.done:
		return f.attempt, f.err
	case <-r.ctx.Done():
		return "", context.Cause(r.ctx)
	}
}

func (r *Realiser) output(drv, name, path string) error {
	if path == "" {
		return &BuildError{drv, fmt.Sprintf("the path of its output %q is known only after the build, which is not supported here", name)}
	}
	if err := r.cfg.Store.AddTempRoot(r.ctx, path); err != nil {
		return r.fail(fmt.Errorf("keeping %s: %w", path, err))
	}
	valid, err := r.cfg.Store.IsValidPath(r.ctx, path)
	if err != nil {
		return r.fail(fmt.Errorf("asking the store for %s: %w", path, err))
	}
	if err := r.required(drv, name); err != nil {
		return err
	}
	if valid {
		// The coordinator is told all the same: elsewhere it may not be there, and the result is part of the job.
		r.cfg.Planner.add(wanted{drv: drv, announce: true})
		return nil
	}
	if err := r.announce(drv, false); err != nil {
		return err
	}
	if unavailable, err := r.ensure(path); unavailable == nil {
		return err
	}
	attempt, err := r.wait(r.once(r.builds, drv, func() (agentapi.ID, error) { return r.poll(drv, "") }))
	if err != nil {
		return err
	}
	if unavailable, err := r.ensure(path); unavailable == nil {
		return err
	}
	// It was built, but not here, and where it was built it did not get into a cache that we can read, or has been
	// removed from there.
	f := r.once(r.rebuilds, drv, func() (agentapi.ID, error) {
		if err := r.required(drv, name); err != nil {
			return "", err
		}
		if err := r.announce(drv, true); err != nil {
			return "", err
		}
		return r.poll(drv, attempt)
	})
	if _, err := r.wait(f); err != nil {
		return err
	}
	unavailable, err := r.ensure(path)
	if unavailable != nil {
		return &BuildError{drv, fmt.Sprintf("it was built, and built again, but its output %q at %s did not get here, where it is needed; "+
			"check that the agents share a binary cache (%v)", name, path, unavailable)}
	}
	return err
}

func (r *Realiser) ensure(path string) (unavailable, err error) {
	unavailable, err = r.cfg.Store.EnsurePath(r.ctx, path)
	if err != nil {
		return nil, r.fail(fmt.Errorf("getting %s: %w", path, err))
	}
	return unavailable, nil
}

func (r *Realiser) required(drv, output string) error {
	return r.cfg.Events.Emit(agentapi.EvaluateEvent{BuildRequired: &agentapi.BuildRequired{DerivationPath: drv, OutputName: output}})
}

// announce returns when the coordinator has got the request: waiting for a build that it does not know of is no use.
func (r *Realiser) announce(drv string, force bool) error {
	if err := r.cfg.Planner.Announce(r.ctx, drv, force); err != nil {
		return r.fail(err)
	}
	return r.cfg.Events.Flush(r.ctx)
}

// poll waits for the end of a build other than the attempt old.
func (r *Realiser) poll(drv string, old agentapi.ID) (agentapi.ID, error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-r.ctx.Done():
			return "", context.Cause(r.ctx)
		}
		b, err := r.cfg.BuildStatus(r.ctx, drv)
		if err != nil {
			return "", r.fail(fmt.Errorf("asking the coordinator about the build of %s, which is required during evaluation: %w", drv, err))
		}
		if b != nil && (old == "" || b.Attempt != old) {
			switch b.Status {
			case agentapi.BuildSuccess:
				return b.Attempt, nil
			case agentapi.BuildFailure:
				return "", &BuildError{drv, "its build failed"}
			case agentapi.DependencyFailure:
				return "", &BuildError{drv, "the build of one of its dependencies failed"}
			case agentapi.Waiting, agentapi.Building:
			}
		}
		timer.Reset(r.cfg.Poll)
	}
}

func (r *Realiser) fail(err error) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	if r.cfg.Fail != nil {
		r.cfg.Fail(err)
	}
	return err
}
