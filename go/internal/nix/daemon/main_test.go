package daemon_test

import (
	"context"
	"testing"

	"go.uber.org/goleak"

	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func dial(t testing.TB, ep daemon.Endpoint, o daemon.Options) *daemon.Conn {
	t.Helper()
	c, err := daemon.Dial(context.Background(), ep, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newStore(t testing.TB, n testnix.Nix, config ...string) *testnix.Store {
	t.Helper()
	return testnix.New(t, testnix.WithNix(n), testnix.WithConfig(config...))
}
