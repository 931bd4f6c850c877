package push_test

import (
	"bytes"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nix-community/go-nix/pkg/narinfo/signature"

	"hercules/internal/formats"
	"hercules/internal/push"
	"hercules/internal/push/fault"
	"hercules/internal/secrets"
	"hercules/internal/testnix"
)

// quick is a policy under which nothing waits for long.
var quick = fault.Policy{First: time.Millisecond, Most: 10 * time.Millisecond, Total: 5 * time.Second, Patience: 5 * time.Second}

// closure is a derivation with a chain and a fan of dependencies, among them odd files.
const closure = `let
  base = sh "base" {} ''mkdir $out; echo base > $out/file; ln -s file $out/link; echo x > $out/$(printf 'n\377'); chmod +x $out/file'';
  leaf = i: sh "leaf-${toString i}" { inherit base; } ''mkdir -p $out/deep/er; echo $base leaf > $out/deep/er/${toString i}; : > $out/empty'';
  self = sh "self" { inherit base; } ''echo $out $base > $out'';
  leaves = builtins.genList leaf 12;
in sh "top" { inherit self leaves; } ''echo $leaves $self > $out''`

func keypair(t testing.TB, name string) (secret secrets.Sensitive, public string) {
	t.Helper()
	s, p, err := signature.GenerateKeypair(name, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return secrets.NewSensitive(s.String()), p.String()
}

func nixCache(name, uri string, keys ...secrets.Sensitive) secrets.BinaryCache {
	return secrets.BinaryCache{Name: name, Kind: formats.KindNixCache, StoreURI: uri, SigningKeys: keys}
}

// open opens a pusher from a store.
func open(t testing.TB, s *testnix.Store, caches ...secrets.BinaryCache) *push.Pusher {
	t.Helper()
	p, err := push.Open(caches, deps(t, s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func deps(t testing.TB, s *testnix.Store) push.Deps {
	return push.Deps{
		Endpoint: s.Endpoint(), Trusted: true, NixDaemon: s.Program("nix-daemon"), Env: s.Env(), TempDir: t.TempDir(), Retry: quick,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(b), "\n"))
	return len(b), nil
}

// webCache is a plain binary cache: GET, HEAD and PUT of files in a directory.
type webCache struct {
	*httptest.Server
	dir string
	// before is asked first; true: it has answered.
	before func(w http.ResponseWriter, r *http.Request) bool

	mu   sync.Mutex
	log  []string // METHOD PATH
	puts map[string]int
}

func newWebCache(t testing.TB) *webCache {
	c := &webCache{dir: t.TempDir(), puts: map[string]int{}}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *webCache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.log = append(c.log, r.Method+" "+r.URL.Path)
	c.mu.Unlock()
	if c.before != nil && c.before(w, r) {
		return
	}
	path := filepath.Join(c.dir, filepath.FromSlash(r.URL.Path))
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		http.ServeFile(w, r, path)
	case http.MethodPut:
		if r.ContentLength < 0 {
			w.WriteHeader(http.StatusLengthRequired)
			return
		}
		var body bytes.Buffer
		if _, err := io.Copy(&body, r.Body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		c.puts[r.URL.Path]++
		c.mu.Unlock()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, body.Bytes(), 0o644)
			if err != nil {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
		}
		w.WriteHeader(http.StatusCreated)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

// requests are those made so far whose method and path begin so.
func (c *webCache) requests(prefix string) (found []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.log {
		if strings.HasPrefix(l, prefix) {
			found = append(found, l)
		}
	}
	return found
}

// substitute gets a path with its closure from a cache into a new store, and has Nix check signatures and contents.
func substitute(t testing.TB, n testnix.Nix, from, public, path string) *testnix.Store {
	t.Helper()
	s := testnix.New(t, testnix.WithNix(n), testnix.WithConfig(
		"substituters = "+from, "trusted-public-keys = "+public, "require-sigs = true", "narinfo-cache-negative-ttl = 0"))
	s.Run("nix-store", "--realise", path)
	s.Run("nix-store", "--verify", "--check-contents")
	return s
}

func closureOf(t testing.TB, s *testnix.Store, path string) []string {
	t.Helper()
	return strings.Fields(s.Run("nix-store", "-qR", path))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func caches(c ...secrets.BinaryCache) []secrets.BinaryCache { return c }
