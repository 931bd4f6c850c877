package traverse

import (
	"context"
	"errors"
)

// Walk evaluates the job and emits its events. Errors of the evaluated code are events; the error returned is
// one of Emit, of ctx, or of the machinery.
func Walk(ctx context.Context, job Job, deps Deps) error {
	return errors.New("not yet")
}

// GitFlakeRef is the flake reference of a commit: {type=git, url, ref, rev}.
func GitFlakeRef(url, ref, rev string) string { return "" }

// LocalFlakeRef is the flake reference of a directory of this machine: its git repository when it has a .git,
// else the plain directory.
func LocalFlakeRef(dir string) string { return "" }
