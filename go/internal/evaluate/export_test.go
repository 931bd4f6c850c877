package evaluate

import (
	"hercules/internal/evaluate/report"
	"hercules/internal/nix/daemon"
	"hercules/internal/wire/agentapi"
)

// DerivationReader reads derivations as an evaluation with this store does.
func DerivationReader(ep daemon.Endpoint) (report.ReadDerivation, func()) {
	s := newStore(ep, daemon.Options{})
	return s.readDerivation, s.close
}

// Netrc are the files with a task's credentials.
type Netrc struct {
	Netrc, Store string
	Env          []string
	Remove       func()
}

// WriteNetrc writes them.
func WriteNetrc(task *agentapi.EvaluateTask, deps Deps) (*Netrc, error) {
	r := newRun(task, deps)
	n, err := r.writeNetrc()
	if err != nil {
		return nil, err
	}
	return &Netrc{n.path, n.store, n.gitEnvironment(), n.remove}, nil
}
