package traverse

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"hercules/internal/nix/evaluator"
)

// unlockedError says that a flake cannot be evaluated as it is committed.
type unlockedError struct{ text string }

func (e *unlockedError) Error() string { return e.text }

// checkLocked makes sure that the lock file of a flake is complete: builtins.getFlake would silently fetch what is
// not locked. Nix itself is asked, because only it knows when a lock file fits a flake.
func (wk *worker) checkLocked(ref string) error {
	w := wk.walk
	out, err := wk.proc.Program(w.ctx, "flake", "metadata", "--json", "--no-update-lock-file", ref)
	if err == nil {
		return checkLocks(ref, out)
	}
	if cause := context.Cause(w.ctx); cause != nil {
		return cause
	}
	if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		return err
	}
	e, ok := errors.AsType[*evaluator.EvalError](err)
	if !ok {
		return &unlockedError{text: err.Error()}
	}
	plain := evaluator.StripANSI(e.Message)
	if strings.Contains(plain, "lock file") && (strings.Contains(plain, "--no-update-lock-file") || strings.Contains(plain, "cannot write modified lock file")) ||
		strings.Contains(plain, "flake registries") || strings.Contains(plain, "registry lookups") {
		return &unlockedError{text: fmt.Sprintf("the lock file of flake %s is missing or does not fit its inputs, and inputs that are not locked are refused; run nix flake lock and commit flake.lock\n\n%s", ref, e.Message)}
	}
	return e
}

// checkLocks looks at the lock file that Nix would use.
func checkLocks(ref string, metadata []byte) error {
	var m struct {
		Locks struct {
			Root  string `json:"root"`
			Nodes map[string]struct {
				Locked map[string]any `json:"locked"`
			} `json:"nodes"`
		} `json:"locks"`
	}
	if err := unmarshal(metadata, &m); err != nil {
		return err
	}
	for name, n := range m.Locks.Nodes {
		if name != m.Locks.Root && n.Locked["narHash"] == nil && n.Locked["rev"] == nil && n.Locked["type"] != "path" {
			return &unlockedError{text: fmt.Sprintf("the input %q of flake %s is not locked; run nix flake lock and commit flake.lock", name, ref)}
		}
	}
	return nil
}
