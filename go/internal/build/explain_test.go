package build_test

import (
	"strings"
	"testing"

	"hercules/internal/build"
	"hercules/internal/nix/daemon"
)

// Texts as Nix 2.8, 2.26 and 2.34 give them, where a real build can't easily be made to fail that way.
func TestExplain(t *testing.T) {
	t.Parallel()
	const drv = "/nix/store/00000000000000000000000000000000-x.drv"
	tests := []struct {
		status  daemon.BuildStatus
		message string
		want    string
	}{
		{daemon.PermanentFailure, "\x1b[31;1merror:\x1b[0m builder for '\x1b[35;1mx\x1b[0m' failed due to signal \x1b[35;1m11\x1b[0m (Segmentation fault)", "the builder was killed by signal 11 (Segmentation fault)."},
		{daemon.PermanentFailure, "builder failed due to signal 9", "the builder was killed by signal 9."},
		{daemon.NotDeterministic, "", "it is not deterministic: a second build gave another output."},
		{daemon.MiscFailure, "derivation 'x' may not be deterministic: output 'y' differs", "it is not deterministic: a second build gave another output."},
		{daemon.DependencyFailed, "3 dependencies of derivation 'x' failed to build", "3 of its dependencies could not be built."},
		{daemon.DependencyFailed, "Reason: 2 dependencies failed.", "2 of its dependencies could not be built."},
		{daemon.TimedOut, "", "it took too long."},
		{daemon.TimedOut, "x timed out after 30 seconds of silence", "it printed nothing for 30 seconds (max-silent-time)."},
		{daemon.LogLimitExceeded, "", "it printed more than Nix allows (max-build-log-size)."},
		{daemon.CachedFailure, "", "it has failed before, and Nix remembers it."},
		{daemon.InputRejected, "", "an input was rejected."},
		{daemon.OutputRejected, "output 'x' is not allowed to refer to 'y'", "an output was rejected."},
		{daemon.TransientFailure, "", "something failed that may work another time."},
		{daemon.NoSubstituters, "", "something that it needs is neither here nor in a cache."},
		{daemon.BuildStatus(15), "hash mismatch", "the hash of its output is not the one that it declares."},
		{daemon.BuildStatus(16), "", "Nix cancelled it because something else failed."},
		{daemon.BuildStatus(99), "unheard of", "Nix could not build it."},
		{daemon.MiscFailure, "a 'riscv' with features {} is required to build 'x'", "it needs the system riscv, which neither this machine nor a remote builder of it provides."},
	}
	for _, test := range tests {
		got := build.Explain(drv, test.status, test.message)
		title, rest, _ := strings.Cut(got, "\n")
		if want := "Build of x.drv failed: " + test.want; title != want {
			t.Errorf("status %d: got %q, want %q", test.status, title, want)
		}
		if rest != test.message {
			t.Errorf("status %d: Nix's own words are %q", test.status, rest)
		}
	}
}

func FuzzExplain(f *testing.F) {
	f.Add(uint64(3), "builder for 'x' failed with exit code 1")
	f.Fuzz(func(t *testing.T, status uint64, message string) {
		got := build.Explain("/nix/store/00000000000000000000000000000000-x.drv", daemon.BuildStatus(status), message)
		if !strings.HasPrefix(got, "Build of x.drv failed: ") || !strings.HasSuffix(got, strings.TrimSpace(message)) {
			t.Errorf("got %q", got)
		}
	})
}
