package daemon_test

import (
	"fmt"
	"testing"

	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
)

// BenchmarkRoundTrip measures one IsValidPath and one AddTextToStore, directly and through a proxy.
func BenchmarkRoundTrip(b *testing.B) {
	s := testnix.New(b)
	direct, proxied := s.Endpoint(), s.Endpoint()
	proxied.Socket = serve(b, &daemon.Proxy{Upstream: direct})
	for _, way := range []struct {
		name string
		ep   daemon.Endpoint
	}{{"direct", direct}, {"proxy", proxied}} {
		c := dial(b, way.ep, daemon.Options{})
		b.Run("IsValidPath/"+way.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := c.IsValidPath(b.Context(), noPath); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("AddTextToStore/"+way.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := c.AddTextToStore(b.Context(), "text", "the same text again", nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkInstantiate has nix-instantiate make 5,000 derivations, directly and through a proxy; the first run of each
// finds an empty store.
func BenchmarkInstantiate(b *testing.B) {
	for _, way := range []string{"direct", "proxy"} {
		s := testnix.New(b)
		file := s.File("many.nix", testnix.Prelude+`builtins.genList (i: sh "drv-${toString i}" { n = i; } "echo $n > $out") 5000`)
		socket := s.Socket()
		if way == "proxy" {
			socket = serve(b, &daemon.Proxy{Upstream: s.Endpoint()})
		}
		for _, state := range []string{"new", "there"} {
			b.Run(fmt.Sprintf("%s/%s", state, way), func(b *testing.B) {
				for b.Loop() {
					output(b, through(s, socket, "nix-instantiate", file))
				}
			})
		}
	}
}
