package agent_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hercules/internal/testnix"
)

// pushRig is an agent with these caches, by name, that runs.
func pushRig(t *testing.T, uris map[string]string) *rig {
	t.Helper()
	r := newRig(t, testnix.Versions(t)[0])
	caches := map[string]any{}
	for name, uri := range uris {
		caches[name] = map[string]any{"kind": "NixCache", "storeURI": uri, "publicKeys": []string{}, "signingKeys": []string{}}
	}
	text, err := json.Marshal(caches)
	if err == nil {
		err = os.WriteFile(filepath.Join(r.Dir(), "agent", "secrets", "binary-caches.json"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.start()
	r.c.await("a ping", func() bool { return r.c.pings > 0 })
	return r
}

// A build pushes to every cache in the order of names and reports each.
func TestBuildPushes(t *testing.T) {
	first, last := t.TempDir(), t.TempDir()
	r := pushRig(t, map[string]string{"c-last": "file://" + last, "a-first": "file://" + first})
	good := r.c.build(r.Instantiate(`sh "good" {} "echo > $out"`))
	if got := r.c.finished(good); got != "Successful" {
		t.Fatalf("good: %s", got)
	}
	if len(good.events) != 4 || good.events[1].Pushed == nil || good.events[1].Pushed.Cache != "a-first" ||
		good.events[2].Pushed == nil || good.events[2].Pushed.Cache != "c-last" || good.events[3].Done == nil {
		t.Errorf("events: %+v", good.events)
	}
	for _, dir := range []string{first, last} {
		if found, _ := filepath.Glob(filepath.Join(dir, "*.narinfo")); len(found) != 1 {
			t.Errorf("%d paths in %s", len(found), dir)
		}
	}
	r.stop()
}

// A push that fails names cache and path, and the cache after that one still gets its paths.
func TestBuildPushFails(t *testing.T) {
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/nar/") {
			w.WriteHeader(http.StatusUnauthorized)
		} else if r.Method != http.MethodPut {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(refusing.Close)
	r := pushRig(t, map[string]string{"c-last": "file://" + t.TempDir(), "b-refuses": refusing.URL})
	other := r.c.build(r.Instantiate(`sh "other" {} "echo other > $out"`))
	status := r.c.finished(other)
	path := other.events[0].OutputInfo.Path
	for _, part := range []string{"Exceptional", "b-refuses", path, "401"} {
		if !strings.Contains(status, part) {
			t.Errorf("the status has no %q: %s", part, status)
		}
	}
	if len(other.events) != 2 || other.events[1].Pushed == nil || other.events[1].Pushed.Cache != "c-last" {
		t.Errorf("events: %+v", other.events)
	}
	if log := r.c.errors(other); !strings.Contains(log, "The build succeeded, but") || !strings.Contains(log, "b-refuses") {
		t.Errorf("log: %s", log)
	}
	r.stop()
}
