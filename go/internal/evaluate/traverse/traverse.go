// Package traverse evaluates a repository with a pool of Nix evaluators and reports what it finds as events of
// the agent protocol: attributes, effects, errors, jobs.
//
// It knows how a continuous integration job is laid out in the Nix language (herculesCI, onPush, flake outputs,
// effects). It does not fetch or unpack sources, does not talk to the coordinator or to a store, and builds
// nothing: an import from derivation is handed to [Deps].Realise.
package traverse

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/evaluator"
	"hercules/internal/wire/agentapi"
)

// Job says what to evaluate. Exactly one of File and Flake is set.
type Job struct {
	// File is the absolute path of a ci.nix or default.nix.
	File string
	// Flake is a flake reference in URL form; see [GitFlakeRef] and [LocalFlakeRef].
	Flake string
	// IsFlakeJob is the task's isFlakeJob, which handler events echo.
	IsFlakeJob bool
	// Source is what expressions see as src (files) or primaryRepo (flakes, without OutPath).
	Source GitSource
	// Selector says which part of the project is wanted.
	Selector agentapi.Selector
	// APIBaseURL is the normalised URL of the coordinator, for herculesCI.apiBaseUrl.
	APIBaseURL string
	// CISystems restricts the default job of flakes; nil means no restriction.
	CISystems []string
	// AutoArguments are supplied to functions and functors of a legacy job.
	AutoArguments map[string]AutoArgument
	// NixPath is the search path that expressions see, and nothing else is on it.
	NixPath []evaluator.SearchPath
	// AllowedPaths may be read by expressions: the checkout and the other inputs.
	AllowedPaths []string
	// Directory is the working directory of the evaluators: the project. If it has a file
	// ci-default-system.txt, that is the Nix setting system.
	Directory string
}

// GitSource describes a checkout to expressions (agent-behaviour 3.4). Empty text means absent and is null there.
type GitSource struct {
	OutPath       string
	Ref, Rev      string
	RemoteHTTPURL string
	RemoteSSHURL  string
	WebURL        string
	ForgeType     string
	Owner, Name   string
}

// AutoArgument is an argument of a legacy function: a path, with the input's metadata when there is any.
type AutoArgument struct {
	Path     string
	Metadata map[string]json.RawMessage
}

// Limits bound the use of the machine. Zero values mean defaults or no limit, as noted.
type Limits struct {
	// Workers is the number of evaluators that compute at the same time; 0 means 1.
	Workers int
	// Waiting is the number of further evaluators that may be kept while they wait for an import from
	// derivation; 0 means 4.
	Waiting int
	// Memory of one evaluator in bytes; 0 means no limit.
	Memory uint64
	// AttributeTime bounds the evaluation of one attribute, waiting for builds not included; 0 means no limit.
	AttributeTime time.Duration
	// JobTime bounds the whole; 0 means no limit.
	JobTime time.Duration
}

// Deps are what [Walk] needs from its caller.
type Deps struct {
	// Evaluator is the program, environment and settings of the evaluators. Walk adds to it Dir, SearchPath, Log
	// and, from StartProxy, the store.
	Evaluator evaluator.Config
	Limits    Limits
	// StoreRoot is where the store is mounted (daemon.Endpoint.Root): derivations are read at StoreRoot+path.
	StoreRoot string
	// Emit takes events, one call at a time. An error stops the walk and is returned by it. Message and
	// AttributeIFD are numbered from 0, each kind for itself.
	Emit func(ctx context.Context, e agentapi.EvaluateEvent) error
	// Realise makes a store path (or the outputs of a derivation) valid in the evaluators' store. It is called
	// concurrently, and again for the same path. A build that failed is reported with a [BuildError]. Blocking says that nothing
	// else goes on in the evaluation meanwhile.
	Realise func(ctx context.Context, p daemon.DerivedPath, blocking bool) error
	// StartProxy opens a store for one evaluator and returns the value of NIX_REMOTE. What arrives there to be
	// built is passed to onRealise before it is forwarded (it is a daemon.Hooks.Realise). Stop is called when the
	// evaluator is gone.
	StartProxy func(ctx context.Context, worker int, onRealise func(context.Context, []daemon.DerivedPath) error) (nixRemote string, stop func(), err error)
	// Flush returns when all that evaluators were told to be in the store is there. It is called before an event is
	// emitted and before a derivation is read. It may be nil: then the store never says so too early.
	Flush func(ctx context.Context) error
	// Log takes what evaluators log: traces, warnings, fetches. It may be nil. Called from several goroutines,
	// one call at a time.
	Log func(daemon.Event)
	// Slog takes what operators may want to know; nil discards.
	Slog *slog.Logger
}

// BuildError says that an import from derivation failed because Derivation could not be built.
type BuildError struct {
	Derivation string
	// Reason is appended to the message for people; it may be empty.
	Reason string
}

// Error names the derivation and says why evaluation cares.
func (e *BuildError) Error() string {
	s := "the derivation " + e.Derivation + ", or a dependency of it, could not be built, and its output is required during evaluation"
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}
