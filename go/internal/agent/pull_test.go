package agent_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hercules/internal/agent"
	"hercules/internal/config"
	"hercules/internal/coordinator"
	"hercules/internal/logging"
	"hercules/internal/nix/localstore"
	"hercules/internal/testnix"
)

// site is the real coordinator with as many agents as are started, each with a store of its own.
type site struct {
	t   *testing.T
	c   *coordinator.Coordinator
	log *safeBuffer
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, log: &safeBuffer{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", s.log)
		}
	})
	var err error
	s.c, err = coordinator.Start(t.Context(), coordinator.Config{Dir: t.TempDir(), Log: s.logger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.c.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *site) logger() *slog.Logger { return logging.New(s.log, slog.LevelDebug, logging.Plain) }

// siteAgent is an agent of a site.
type siteAgent struct {
	*testnix.Store
	base string
	stop func()
}

func (a *siteAgent) secret(name string) string { return filepath.Join(a.base, "secrets", name) }

// start starts an agent with a store. What is in extra goes over the usual configuration.
func (s *site) start(store *testnix.Store, caches string, extra map[string]any) *siteAgent {
	t := s.t
	t.Helper()
	a := &siteAgent{Store: store, base: filepath.Join(store.Dir(), "agent")}
	if err := os.MkdirAll(filepath.Join(a.base, "secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"cluster-join-token.key": s.c.JoinToken(), "binary-caches.json": caches} {
		if err := os.WriteFile(a.secret(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	settings := map[string]string{"narinfo-cache-negative-ttl": "0"}
	document := map[string]any{
		"apiBaseUrl": s.c.URL(), "baseDirectory": a.base, "concurrentTasks": 2, "nixUserIsTrusted": true, "nixSettings": settings,
	}
	for name, value := range extra {
		if more, ok := value.(map[string]string); ok && name == "nixSettings" {
			for k, v := range more {
				settings[k] = v
			}
			continue
		}
		document[name] = value
	}
	text, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Parse("agent.json", text, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	cfg.EvaluationWorkers = 1
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	started := make(chan struct{})
	go func() {
		defer close(ended)
		err := agent.Run(ctx, cfg, agent.Options{
			Log: s.logger(), NixProgram: store.Program("nix"), Env: store.Env(), Times: quick, Started: started,
			Store: &localstore.Store{Endpoint: store.Endpoint(), Why: "test"},
		})
		if err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	}()
	a.stop = func() { stop(); <-ended }
	t.Cleanup(a.stop)
	select {
	case <-started:
	case <-ended:
	}
	return a
}

// job does a job whose source is one file, and gives the outcome of each attribute.
func (s *site) job(expr string) map[string]string {
	s.t.Helper()
	return s.wait(s.submit(expr))
}

// submit begins a job.
func (s *site) submit(expr string) (id string) {
	s.t.Helper()
	job, err := s.c.Submit(s.t.Context(), coordinator.Job{
		Name: "project",
		Source: coordinator.Source{Ref: "refs/heads/main", Rev: strings.Repeat("a", 40), Archive: func(_ context.Context, w io.Writer) error {
			z := gzip.NewWriter(w)
			a := tar.NewWriter(z)
			if err := a.WriteHeader(&tar.Header{Name: "default.nix", Mode: 0o644, Size: int64(len(expr))}); err != nil {
				return err
			}
			if _, err := io.WriteString(a, expr); err != nil {
				return err
			}
			if err := a.Close(); err != nil {
				return err
			}
			return z.Close()
		}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return job
}

// wait waits for the end of a job.
func (s *site) wait(job string) map[string]string {
	s.t.Helper()
	wait, cancel := context.WithTimeout(s.t.Context(), 3*time.Minute)
	defer cancel()
	result, err := s.c.Wait(wait, job)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range result.Failures {
		l, err := s.c.OpenLog(s.t.Context(), f.Drv, false)
		if err != nil {
			s.t.Logf("log of %s: %v", f.Drv, err)
			continue
		}
		text, err := io.ReadAll(l)
		_ = l.Close()
		s.t.Logf("log of %s: %v\n%s", f.Drv, err, text)
	}
	outcomes := map[string]string{}
	for _, a := range result.Attributes {
		outcomes[strings.Join(a.Path, ".")] = string(a.Outcome)
	}
	return outcomes
}

// private serves a directory as a binary cache to those who know the password, and to nobody else.
type private struct {
	server  *httptest.Server
	reads   atomic.Int64 // of narinfo and NAR files that were there
	refused atomic.Int64
}

func newPrivate(t *testing.T, dir, password string) *private {
	t.Helper()
	p := &private{}
	files := http.FileServer(http.Dir(dir))
	p.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, got, ok := r.BasicAuth(); !ok || got != password {
			p.refused.Add(1)
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			http.Error(w, "only for reading", http.StatusMethodNotAllowed)
			return
		}
		if _, err := os.Stat(filepath.Join(dir, filepath.FromSlash(r.URL.Path))); err == nil && r.URL.Path != "/nix-cache-info" {
			p.reads.Add(1)
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(p.server.Close)
	return p
}

// keyPair makes a key and gives its file and the public half.
func keyPair(s *testnix.Store, name string) (file, public string) {
	file = filepath.Join(s.Dir(), name+".sec")
	pub := filepath.Join(s.Dir(), name+".pub")
	s.Run("nix-store", "--generate-binary-cache-key", name, file, pub)
	text, err := os.ReadFile(pub)
	if err != nil {
		panic(err)
	}
	return file, strings.TrimSpace(string(text))
}

// inputs are derivations whose outputs are others each time that they are built: who has the same has got it from
// where it was built.
const inputs = `let
	input = sh "input" {} "cat /proc/sys/kernel/random/uuid > $out";
	plan = sh "plan" {} "echo \\\"planned-$(cat /proc/sys/kernel/random/uuid)\\\" > $out";
in `

const pullJob = testnix.Prelude + inputs + `{
	build = sh "build" { inherit input; } "cat $input > $out";
	imported = sh (import plan) { } "echo > $out";
}`

// What is in a private cache is substituted with the credentials of the netrc file and the signature checked: by an
// evaluation that imports from a derivation, and by a build for its inputs.
func TestPrivateCache(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		other := testnix.New(t, testnix.WithNix(n))
		secret, public := keyPair(other, "cache-1")
		_, wrong := keyPair(other, "cache-2")
		input, plan := other.Build(inputs+"input"), other.Build(inputs+"plan")
		dir := filepath.Join(other.Dir(), "cache")
		other.Copy("file://"+dir+"?secret-key="+secret, input, plan)
		same := func(store *testnix.Store, path string) bool {
			t.Helper()
			theirs, err := os.ReadFile(other.Real(path))
			if err != nil {
				t.Fatal(err)
			}
			ours, err := os.ReadFile(store.Real(path))
			if err != nil {
				t.Fatal(err)
			}
			return string(ours) == string(theirs)
		}

		for _, test := range []struct {
			name     string
			key      string
			password string
			got      bool
		}{
			{"good", public, "open-sesame", true},
			{"signed with another key", wrong, "open-sesame", false},
			{"wrong password", public, "open-says-me", false},
		} {
			t.Run(test.name, func(t *testing.T) {
				s := newSite(t)
				cache := newPrivate(t, dir, "open-sesame")
				store := testnix.New(t, testnix.WithNix(n))
				netrc := store.File("netrc", fmt.Sprintf("machine 127.0.0.1 login reader password %s\n", test.password))
				s.start(store, "{}", map[string]any{"nixSettings": map[string]string{
					"netrc-file": netrc, "substituters": cache.server.URL, "trusted-public-keys": test.key,
				}})
				outcomes := s.job(pullJob)
				if len(outcomes) != 2 || outcomes["build"] != "good" || outcomes["imported"] != "good" {
					t.Errorf("outcomes: %v", outcomes)
				}
				if same(store, input) != test.got {
					t.Errorf("input of a build substituted: %v, want %v", !test.got, test.got)
				}
				if same(store, plan) != test.got {
					t.Errorf("import substituted: %v, want %v", !test.got, test.got)
				}
				t.Logf("%v, %d reads, %d refused", outcomes, cache.reads.Load(), cache.refused.Load())
			})
		}
	})
}
