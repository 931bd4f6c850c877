package agent_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hercules/internal/coordinator/cache"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
	"hercules/internal/secrets"
	"hercules/internal/testnix"
)

// newBox is a private cache in a box, with its address.
func newBox(t *testing.T, token string) (*cache.Cache, *url.URL) {
	t.Helper()
	c, err := cache.Open(t.TempDir(), cache.Options{Name: "box", NoSync: true, WriteTokens: []secrets.Sensitive{secrets.NewSensitive(token)}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(c.Handler())
	t.Cleanup(func() {
		server.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return c, u
}

func fileText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func cachesFile(t *testing.T, entries map[string]any) string {
	t.Helper()
	text, err := json.Marshal(entries)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// output is the one path in a store with a name.
func output(t *testing.T, s *testnix.Store, name string) string {
	t.Helper()
	found, err := filepath.Glob(s.Real("/nix/store/*-" + name))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: found %q (%v)", name, found, err)
	}
	return storepath.StoreDir + "/" + filepath.Base(found[0])
}

// signers are those of the keys that have signed a path in a store.
func signers(t *testing.T, s *testnix.Store, path string, keys ...string) []string {
	t.Helper()
	c, err := daemon.Dial(t.Context(), s.Endpoint(), daemon.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	info, ok, err := c.QueryPathInfo(t.Context(), path)
	if err != nil || !ok {
		t.Fatalf("%s: %v", path, err)
	}
	if info.Ultimate {
		return nil // built here
	}
	names, err := narinfo.Verify(info, keys)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Two machines that share nothing but the cache: what one builds, the other substitutes, because it is signed; also
// when one evaluates, and the other builds what the evaluation imports.
func TestTwoAgents(t *testing.T) {
	t.Parallel()
	const random = "cat /proc/sys/kernel/random/uuid"
	const job = testnix.Prelude + `let
		on = feature: attrs: attrs // { requiredSystemFeatures = [ feature ]; };
		plan = sh "plan" (on "big" {}) "echo \\\"planned-$(` + random + `)\\\" > $out";
		one = sh "one" (on "big" {}) "` + random + ` > $out";
		two = sh "two" (on "small" { inherit one; }) "cat $one > $out; ` + random + ` >> $out";
		three = sh "three" (on "big" { inherit two; }) "cat $two > $out; ` + random + ` >> $out";
	in {
		inherit three;
		imported = sh (import plan) (on "small" {}) "echo > $out";
	}`
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		const token = "the-token"
		box, address := newBox(t, token)
		withToken := *address
		withToken.User = url.UserPassword("ci", token)
		maker := testnix.New(t, testnix.WithNix(n))
		secretFile, public := keyPair(maker, "agents-1")
		for name, test := range map[string]struct {
			entry map[string]any
			key   string
		}{
			"signed by the agents": {map[string]any{
				"kind": "NixCache", "storeURI": withToken.String(), "publicKeys": []string{public}, "signingKeys": []string{strings.TrimSpace(fileText(t, secretFile))},
			}, public},
			"signed by the service": {map[string]any{
				"kind": "CachixCache", "apiBaseUrl": address.String(), "authToken": token, "publicKeys": []string{box.PublicKey()},
			}, box.PublicKey()},
		} {
			t.Run(name, func(t *testing.T) {
				s := newSite(t)
				caches := cachesFile(t, map[string]any{"box": test.entry})
				small := testnix.New(t, testnix.WithNix(n), testnix.WithConfig("system-features = small"))
				big := testnix.New(t, testnix.WithNix(n), testnix.WithConfig("system-features = big"))
				// Who has more room gets the evaluation, and cannot build what is for the other one.
				s.start(small, caches, map[string]any{"concurrentTasks": 8})
				s.start(big, caches, map[string]any{"concurrentTasks": 1})
				s.awaitLogs("both agents", 2, "agent connected")
				expr := strings.ReplaceAll(job, "cat /proc", ": "+strings.ReplaceAll(t.Name(), "/", "-")+"; cat /proc") // not those of another test
				outcomes := s.job(expr)
				if len(outcomes) != 2 || outcomes["three"] != "good" || outcomes["imported"] != "good" {
					t.Fatalf("outcomes: %v", outcomes)
				}
				if evaluated, err := filepath.Glob(big.Real("/nix/store/*-planned-*.drv")); err != nil || len(evaluated) > 0 {
					t.Errorf("evaluated where it was to be built: %q %v", evaluated, err)
				}
				keys := []string{test.key}
				for _, x := range []struct {
					name           string
					built, fetched *testnix.Store
				}{{"plan", big, small}, {"one", big, small}, {"two", small, big}} {
					path := output(t, x.built, x.name)
					if fileText(t, x.built.Real(path)) != fileText(t, x.fetched.Real(path)) {
						t.Errorf("%s was built twice", x.name)
					}
					if got := signers(t, x.fetched, path, keys...); len(got) != 1 {
						t.Errorf("%s: signed by %q where it was substituted", x.name, got)
					}
				}
				logs := ""
				for _, name := range []string{"plan", "one", "two", "three"} {
					logs += s.buildLog(output(t, small, name+".drv"))
				}
				if strings.Contains(s.log.String()+logs, token) {
					t.Error("a log shows the token")
				}
				if test.entry["kind"] == "NixCache" && !strings.Contains(logs, "://[redacted]@127.0.0.1") {
					t.Errorf("the logs of the builds do not have the cache in them:\n%s", logs)
				}
			})
		}
	})
}

// buildLog is the log of a build as the coordinator has it.
func (s *site) buildLog(drv string) string {
	s.t.Helper()
	l, err := s.c.OpenLog(s.t.Context(), drv, false)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	text, err := io.ReadAll(l)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// awaitLog waits for a line of the agents' log that has all of the texts.
func (s *site) awaitLog(what string, texts ...string) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		for line := range strings.Lines(s.log.String()) {
			if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
				return
			}
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("no sign of %s", what)
		}
	}
}

// A key that is rotated, by a rename or by a link to another generation, is used by the next task; a running one keeps
// the old one, a wrong file changes nothing, and the session stays.
func TestRotatedKey(t *testing.T) {
	t.Parallel()
	const reloaded = "changed binary caches or netrc are in use"
	for name, layout := range map[string]struct {
		path string // of the file, below the directory
		put  func(dir string, n int, text string) error
	}{
		"rename": {"secrets/binary-caches.json", func(dir string, _ int, text string) error {
			path := filepath.Join(dir, "secrets/binary-caches.json")
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		}},
		"link to a generation": {"run/secrets/binary-caches.json", func(dir string, n int, text string) error {
			generation := filepath.Join(dir, fmt.Sprintf("run/secrets.d/%d", n))
			if err := os.MkdirAll(generation, 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(generation, "binary-caches.json"), []byte(text), 0o600); err != nil {
				return err
			}
			link := filepath.Join(dir, "run/secrets")
			if err := os.Symlink(generation, link+".new"); err != nil {
				return err
			}
			if err := os.Rename(link+".new", link); err != nil {
				return err
			}
			return os.RemoveAll(filepath.Join(dir, fmt.Sprintf("run/secrets.d/%d", n-1)))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gate := t.TempDir()
			store := testnix.New(t, testnix.WithConfig("extra-sandbox-paths = /gate="+gate))
			dir := filepath.Join(store.Dir(), "operator")
			pushed := filepath.Join(store.Dir(), "cache")
			public := map[string]string{}
			generation := 0
			put := func(text string) {
				t.Helper()
				generation++
				if err := layout.put(dir, generation, text); err != nil {
					t.Fatal(err)
				}
			}
			file := func(key string) string {
				secret, pub := keyPair(store, key)
				public[key] = pub
				return cachesFile(t, map[string]any{"own": map[string]any{
					"kind": "NixCache", "storeURI": "file://" + pushed, "publicKeys": []string{pub}, "signingKeys": []string{strings.TrimSpace(fileText(t, secret))},
				}})
			}
			first, second := file("first-1"), file("second-1")
			signedBy := func(name string) string {
				t.Helper()
				path := output(t, store, name)
				text := fileText(t, filepath.Join(pushed, storepath.HashPart(path)+".narinfo"))
				info, err := narinfo.Parse([]byte(text))
				if err != nil {
					t.Fatal(err)
				}
				names, err := narinfo.Verify(info.PathInfo(), slices.Collect(maps.Values(public)))
				if err != nil {
					t.Fatal(err)
				}
				slices.Sort(names)
				return strings.Join(names, " ")
			}
			build := func(name string) string {
				return testnix.Prelude + fmt.Sprintf(`{ %s = sh "%s" {} "echo > $out"; }`, name, name)
			}
			expect := func(name, key string) {
				t.Helper()
				if got := signedBy(name); got != key {
					t.Errorf("%s is signed by %q, want %q", name, got, key)
				}
			}

			put(first)
			s := newSite(t)
			a := s.start(store, "{}", map[string]any{"binaryCachesPath": filepath.Join(dir, layout.path)})
			session := func() string {
				t.Helper()
				path := filepath.Join(a.base, "secretState", "session.key")
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				return info.ModTime().String() + fileText(t, path)
			}
			s.job(build("a"))
			expect("a", "first-1")
			before := session()

			running := s.submit(testnix.Prelude + `{ slow = sh "slow" {} "until [ -e /gate/open ]; do sleep 0.05; done; echo > $out"; }`)
			s.awaitLog("the build", "task started", "kind=build", "-slow.drv")
			put(second)
			s.awaitLog("the new file", reloaded)
			s.job(build("b"))
			expect("b", "second-1")
			if err := os.WriteFile(filepath.Join(gate, "open"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s.wait(running)
			expect("slow", "first-1")

			put(`{"own": {"kind": "NixCache"}}`)
			s.awaitLog("the wrong file", "changed secrets are not used", "storeURI")
			s.job(build("c"))
			expect("c", "second-1")

			third := file("third-1")
			put(third)
			s.awaitLogs("the next file", 2, reloaded)
			s.job(build("d"))
			expect("d", "third-1")
			if session() != before {
				t.Error("session.key was touched")
			}
			for _, key := range []string{"first-1", "second-1", "third-1"} {
				if strings.Contains(s.log.String(), strings.TrimSpace(fileText(t, filepath.Join(store.Dir(), key+".sec")))) {
					t.Errorf("the log shows the key %s", key)
				}
			}
		})
	}
}

// awaitLogs waits until a text was logged so often.
func (s *site) awaitLogs(what string, n int, text string) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); strings.Count(s.log.String(), text) < n; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("no sign of %s", what)
		}
	}
}
