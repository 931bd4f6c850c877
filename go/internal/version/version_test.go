package version_test

import (
	"testing"

	"hercules/internal/version"
)

func TestAgent(t *testing.T) {
	saved := version.Version
	t.Cleanup(func() { version.Version = saved })
	for in, want := range map[string]string{
		"0.11.0-dev": "0.11.0", "0.11.0": "0.11.0", "1.2.3+g1234567": "1.2.3", "1.2.3.dirty": "1.2.3", "": "",
	} {
		version.Version = in
		if got := version.Agent(); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
