// Package evaluator runs the user's own nix program as a persistent evaluator: nix repl, driven over its standard
// input, with results coming back as traces in the structured log on standard error. So any Nix version can be
// used without linking against it.
//
// It knows the Nix language only as far as escaping and error messages go. It does not know what is evaluated.
package evaluator

import "hercules/internal/nix/daemon"

// Config says how an evaluator is started.
type Config struct {
	// Program is the nix program; empty means "nix" from PATH.
	Program string
	// Env is the complete environment, without NIX_PATH, which comes from SearchPath; nil means [Environ]
	// of the process's own.
	Env []string
	// Settings are passed as --option NAME VALUE.
	Settings map[string]string
	// Dir is the working directory.
	Dir string
	// SearchPath becomes NIX_PATH. Under restrict-eval it is also what may be read.
	SearchPath []SearchPath
	// Remote is NIX_REMOTE, unless it is empty.
	Remote string
	// StackSize in bytes; 0 means 256 MiB. The hard limit of the process still holds.
	StackSize uint64
	// MemoryLimit in bytes of resident memory; the evaluator is killed when it is over it. 0 means none.
	MemoryLimit uint64
	// Own are directories whose files are the caller's: their frames are cut out of errors.
	Own []string
	// Log takes what Nix logs, except for results; nil discards. Called in order, one call at a
	// time; it must not call the Process.
	Log func(daemon.Event)
}

// SearchPath is an entry of NIX_PATH. Prefix may be empty.
type SearchPath struct {
	Prefix string
	Path   string
}
