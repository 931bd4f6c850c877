package build

import (
	"fmt"
	"regexp"
	"strings"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/storepath"
)

// Statuses that newer Nix has for what it told by text before (build-result.hh of Nix 2.33).
const (
	hashMismatch daemon.BuildStatus = 15
	cancelled    daemon.BuildStatus = 16
)

var (
	ansi         = regexp.MustCompile("\x1b\\[[0-9;]*m")
	exitCode     = regexp.MustCompile(`failed with exit code (\d+)`)
	signal       = regexp.MustCompile(`failed due to signal (\d+)(?: \(([^)]*)\))?`)
	silence      = regexp.MustCompile(`timed out after (\d+) seconds of silence`)
	timeout      = regexp.MustCompile(`timed out after (\d+) seconds`)
	specified    = regexp.MustCompile(`(?:specified|wanted):\s*(\S+)`)
	got          = regexp.MustCompile(`got:\s*(\S+)`)
	noOutput     = regexp.MustCompile(`failed to produce output (?:path for output '([^']+)'|path)`)
	dependencies = regexp.MustCompile(`(\d+) dependenc(?:y|ies) (?:of derivation|failed)`)
	platform     = regexp.MustCompile(`a '([^']*)' with features \{([^}]*)\} is required`)
	needSystem   = regexp.MustCompile(`Required system: '([^']*)'`)
	needFeatures = regexp.MustCompile(`Required features: \{([^}]*)\}`)
)

// Explain names the kind of a failure for people, before Nix's own words.
func Explain(drvPath string, status daemon.BuildStatus, message string) string {
	message = strings.TrimSpace(message)
	title := fmt.Sprintf("Build of %s failed: %s", storepath.Name(drvPath), kind(status, ansi.ReplaceAllString(message, "")))
	if message == "" {
		return title
	}
	return title + "\n" + message
}

// kind says in one sentence what went wrong. Old daemons tell most by text alone, so the text is looked at first
// where it is unmistakable.
func kind(status daemon.BuildStatus, text string) string {
	find := func(re *regexp.Regexp) string {
		if m := re.FindStringSubmatch(text); m != nil {
			return m[1]
		}
		return ""
	}
	switch {
	case status == hashMismatch, strings.Contains(text, "hash mismatch in fixed-output derivation"):
		want, have := find(specified), find(got)
		if want == "" || have == "" {
			return "the hash of its output is not the one that it declares."
		}
		return fmt.Sprintf("hash mismatch: it declares %s but its output is %s.", want, have)
	case strings.Contains(text, "cycle detected in"):
		return "its outputs refer to each other in a cycle."
	case status == daemon.DependencyFailed:
		if n := find(dependencies); n != "" && n != "1" {
			return n + " of its dependencies could not be built."
		}
		return "a dependency could not be built."
	case status == daemon.TimedOut:
		if n := find(silence); n != "" {
			return fmt.Sprintf("it printed nothing for %s seconds (max-silent-time).", n)
		}
		if n := find(timeout); n != "" {
			// Nix 2.34 says the same when it is silence that took so long.
			return fmt.Sprintf("it took longer than %s seconds (timeout, or max-silent-time).", n)
		}
		return "it took too long."
	case status == daemon.LogLimitExceeded, strings.Contains(text, "killed after writing more than"):
		return "it printed more than Nix allows (max-build-log-size)."
	case status == daemon.NotDeterministic, strings.Contains(text, "may not be deterministic"):
		return "it is not deterministic: a second build gave another output."
	case status == daemon.CachedFailure:
		return "it has failed before, and Nix remembers it."
	case status == cancelled:
		return "Nix cancelled it because something else failed."
	}
	if system, features := find(needSystem), find(needFeatures); system != "" || features != "" {
		return unavailable(system, features)
	}
	if m := platform.FindStringSubmatch(text); m != nil {
		return unavailable(m[1], m[2])
	}
	if n := find(exitCode); n != "" {
		return fmt.Sprintf("the builder ended with exit code %s.", n)
	}
	if m := signal.FindStringSubmatch(text); m != nil {
		if m[2] != "" {
			return fmt.Sprintf("the builder was killed by signal %s (%s).", m[1], m[2])
		}
		return fmt.Sprintf("the builder was killed by signal %s.", m[1])
	}
	if m := noOutput.FindStringSubmatch(text); m != nil {
		if m[1] != "" {
			return fmt.Sprintf("the builder ended well but did not make its output %s.", m[1])
		}
		return "the builder ended well but did not make all its outputs."
	}
	switch status {
	case daemon.InputRejected:
		return "an input was rejected."
	case daemon.OutputRejected:
		return "an output was rejected."
	case daemon.NoSubstituters:
		return "something that it needs is neither here nor in a cache."
	case daemon.TransientFailure:
		return "something failed that may work another time."
	}
	return "Nix could not build it."
}

func unavailable(system, features string) string {
	const nowhere = ", which neither this machine nor a remote builder of it provides."
	switch {
	case features == "":
		return "it needs the system " + system + nowhere
	case system == "":
		return "it needs the system features " + features + nowhere
	}
	return "it needs the system " + system + " with the features " + features + nowhere
}
