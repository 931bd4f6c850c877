package agent_test

import (
	"strings"
	"testing"

	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

// Where the host of a cache is not known, as on a machine without a network, the daemon is not made to find that out by
// itself, which takes it some five seconds.
func TestUnknownCache(t *testing.T) {
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		r := newRig(t, n)
		r.WriteConfig("substituters = https://cache.invalid")
		r.start()
		r.c.await("an agent", func() bool { return r.c.peer != nil })
		rec := r.c.build(r.Instantiate(`sh "alone" { } "echo > $out"`))
		if got := r.c.finished(rec); got != "Successful" {
			t.Errorf("status: %s", got)
		}
		r.c.mu.Lock()
		defer r.c.mu.Unlock()
		told := 0
		for _, e := range rec.log {
			switch {
			case e.Kind != agentapi.LogMsg:
			case strings.Contains(e.Text, "cache.invalid") && strings.Contains(e.Text, "does without it"):
				told++
			case strings.Contains(e.Text, "cache.invalid"):
				t.Errorf("Nix tried the cache: %s", e.Text)
			}
		}
		if told != 1 {
			t.Errorf("the log says %d times that there is no such cache", told)
		}
	})
}
