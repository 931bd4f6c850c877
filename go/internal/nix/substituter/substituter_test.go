package substituter_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
	"hercules/internal/nix/substituter"
	"hercules/internal/testnix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	hash   = "00bgd045z0d4icpbc2yyz4gx48ak44la"
	absent = "/nix/store/" + hash + "-absent"
)

func open(t *testing.T, uri string, o substituter.Options) substituter.Store {
	t.Helper()
	o.Backoff = time.Microsecond
	s, err := substituter.Open(t.Context(), uri, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing %s: %v", uri, err)
		}
	})
	return s
}

func TestRealStores(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n))
		out := s.Build(`sh "x" { dep = sh "dep" { } "echo dep > $out"; } "echo $dep > $out"`)
		paths := strings.Fields(s.Run("nix-store", "-qR", out))
		dir, root := filepath.Join(s.Dir(), "cache"), filepath.Join(s.Dir(), "other")
		s.Copy("file://"+dir, out)
		s.Copy("local?root="+root, out)
		server := httptest.NewServer(http.FileServer(http.Dir(dir)))
		defer server.Close()

		want := map[string]*daemon.PathInfo{}
		conn, err := daemon.Dial(t.Context(), s.Endpoint(), daemon.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, path := range paths {
			info, ok, err := conn.QueryPathInfo(t.Context(), path)
			if err != nil || !ok {
				t.Fatalf("%s: %t, %v", path, ok, err)
			}
			want[path] = plain(info)
		}
		if len(want) != 2 {
			t.Fatalf("the closure has %d paths", len(want))
		}

		for _, uri := range []string{"file://" + dir, server.URL, server.URL + "/?priority=3", "local?root=" + root, root, s.NixRemote()} {
			t.Run(uri[:4], func(t *testing.T) {
				st := open(t, uri, substituter.Options{Nix: s.Program("nix-daemon"), Env: s.Env()})
				for range 2 { // the second time from memory
					got, err := st.Query(t.Context(), append(paths, absent, paths[0]))
					if err != nil {
						t.Fatal(err)
					}
					for path, info := range got {
						got[path] = plain(info)
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("%s: %s", uri, diff)
					}
				}
				if _, err := st.Query(t.Context(), []string{"/etc/passwd"}); err == nil || !strings.Contains(err.Error(), uri[:4]) {
					t.Errorf("a path outside of the store: %v", err)
				}
			})
		}
	})
}

// plain leaves out what each store has of its own.
func plain(info *daemon.PathInfo) *daemon.PathInfo {
	p := *info
	p.RegistrationTime, p.Ultimate, p.Signatures = 0, false, nil
	p.References = slices.Sorted(slices.Values(p.References))
	return &p
}

// fakeCache serves narinfos for every path named present-…, and counts requests.
type fakeCache struct {
	requests sync.Map // name -> *atomic.Int64
	// before, when set, may answer in place of the cache.
	before func(w http.ResponseWriter, r *http.Request, nth int64) (done bool)
	info   string
}

func (c *fakeCache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	counter, _ := c.requests.LoadOrStore(r.URL.Path, new(atomic.Int64))
	nth := counter.(*atomic.Int64).Add(1)
	if c.before != nil && c.before(w, r, nth) {
		return
	}
	if r.URL.Path == "/nix-cache-info" {
		fmt.Fprint(w, c.info)
		return
	}
	part, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/"), ".narinfo")
	if !ok || !strings.HasPrefix(part, "0") {
		http.NotFound(w, r)
		return
	}
	info := narinfo.NarInfo{StorePath: "/nix/store/" + part + "-present", URL: "nar/x", NarHash: make([]byte, 32), NarSize: 1}
	w.Write(info.Append(nil))
}

func (c *fakeCache) count(path string) int64 {
	counter, ok := c.requests.Load("/" + path)
	if !ok {
		return 0
	}
	return counter.(*atomic.Int64).Load()
}

func (c *fakeCache) start(t *testing.T) *httptest.Server {
	t.Helper()
	if c.info == "" {
		c.info = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 41\n"
	}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	return server
}

func present(n int) string { return fmt.Sprintf("/nix/store/%032d-present", n) }

func narinfoOf(path string) string { return storepath.HashPart(path) + ".narinfo" }

func TestEachPathIsAskedOnce(t *testing.T) {
	t.Parallel()
	var now, most atomic.Int64
	c := &fakeCache{before: func(http.ResponseWriter, *http.Request, int64) bool {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		return false
	}}
	s := open(t, c.start(t).URL, substituter.Options{})
	var paths []string
	for n := range 300 {
		paths = append(paths, present(n))
	}
	missing := "/nix/store/" + strings.Repeat("z", 32) + "-x"
	wrongName := "/nix/store/" + storepath.HashPart(present(1)) + "-other"
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			got, err := s.Query(t.Context(), append(slices.Clone(paths), missing))
			if err != nil {
				t.Error(err)
			}
			if len(got) != len(paths) || got[missing] != nil {
				t.Errorf("%d of %d paths", len(got), len(paths))
			}
		})
	}
	wg.Wait()
	for _, path := range append(paths, missing) {
		if got := c.count(narinfoOf(path)); got != 1 {
			t.Errorf("%s was asked for %d times", path, got)
		}
	}
	if got := c.count("nix-cache-info"); got != 1 {
		t.Errorf("nix-cache-info was asked for %d times", got)
	}
	if got, err := s.Query(t.Context(), []string{wrongName}); err != nil || len(got) != 0 {
		t.Errorf("another name with the same hash part: %v, %v", got, err)
	}
	if most.Load() > 32 {
		t.Errorf("%d requests at once", most.Load())
	}
	info, err := s.(*substituter.BinaryCache).Info(t.Context())
	if want := (substituter.Info{StoreDir: "/nix/store", WantMassQuery: true, Priority: 41}); err != nil || info != want {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestRetries(t *testing.T) {
	t.Parallel()
	path := present(7)
	for _, c := range []struct {
		name   string
		status []int // of the first answers; then the cache's own
		found  bool
		errors bool
		asked  int64
	}{
		{"passing errors", []int{500, 503, 429}, true, false, 4},
		{"lasting error", []int{502, 502, 502, 502, 502}, false, true, 4},
		{"unauthorized", []int{401}, false, true, 1},
		{"forbidden", []int{403}, false, false, 1},
		{"gone", []int{410}, false, false, 1},
		{"broken off", []int{0, 0}, true, false, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cache := &fakeCache{before: func(w http.ResponseWriter, r *http.Request, nth int64) bool {
				if r.URL.Path == "/nix-cache-info" || nth > int64(len(c.status)) {
					return false
				}
				if c.status[nth-1] == 0 {
					w.Header().Set("Content-Length", "1000")
					fmt.Fprint(w, "StorePath: ")
					panic(http.ErrAbortHandler)
				}
				w.WriteHeader(c.status[nth-1])
				return true
			}}
			server := cache.start(t)
			got, err := open(t, server.URL, substituter.Options{}).Query(t.Context(), []string{path})
			if (err != nil) != c.errors || (got[path] != nil) != c.found {
				t.Errorf("found %v, error %v", got, err)
			}
			if err != nil && (!strings.Contains(err.Error(), server.URL) || !strings.Contains(err.Error(), path)) {
				t.Errorf("the error does not say which: %v", err)
			}
			if got := cache.count(narinfoOf(path)); got != c.asked {
				t.Errorf("asked %d times, want %d", got, c.asked)
			}
		})
	}
}

func TestErrorsAreNotRemembered(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	broken.Store(true)
	c := &fakeCache{before: func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		if broken.Load() {
			w.WriteHeader(http.StatusUnauthorized)
		}
		return broken.Load()
	}}
	s := open(t, c.start(t).URL, substituter.Options{})
	if _, err := s.Query(t.Context(), []string{present(1)}); err == nil {
		t.Error("no error")
	}
	broken.Store(false)
	if got, err := s.Query(t.Context(), []string{present(1)}); err != nil || len(got) != 1 {
		t.Errorf("afterwards: %v, %v", got, err)
	}
}

func TestNotACache(t *testing.T) {
	t.Parallel()
	for info, want := range map[string]string{
		"StoreDir: /gnu/store\n":                     "store directory /gnu/store",
		"StoreDir: /nix/store\nPriority: x\n":        "priority",
		strings.Repeat("x", narinfo.MaxSize+1) + ":": "more than",
	} {
		c := &fakeCache{info: info}
		_, err := open(t, c.start(t).URL, substituter.Options{}).Query(t.Context(), []string{present(1)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: error %v, want %q", info, err, want)
		}
	}
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	if _, err := open(t, server.URL, substituter.Options{}).Query(t.Context(), []string{absent}); err == nil || !strings.Contains(err.Error(), "not a binary cache") {
		t.Errorf("a web server: %v", err)
	}
	if _, err := open(t, "file://"+t.TempDir(), substituter.Options{}).Query(t.Context(), []string{absent}); err == nil {
		t.Error("an empty directory is taken for a cache")
	}
	server.Close()
	if _, err := open(t, server.URL, substituter.Options{}).Query(t.Context(), []string{absent}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody there: %v", err)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	c := &fakeCache{before: func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "pass word" {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}}
	server := c.start(t)
	netrc := filepath.Join(t.TempDir(), "netrc")
	text := "machine elsewhere login a password b\nmachine 127.0.0.1 login me\n  password \"pass word\"\n"
	if err := os.WriteFile(netrc, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := open(t, server.URL, substituter.Options{Netrc: netrc}).Query(t.Context(), []string{present(1)}); err != nil || len(got) != 1 {
		t.Errorf("with netrc: %v, %v", got, err)
	}
	withPassword := strings.Replace(server.URL, "//", "//me:pass%20word@", 1)
	s := open(t, withPassword, substituter.Options{})
	if got, err := s.Query(t.Context(), []string{present(1)}); err != nil || len(got) != 1 {
		t.Errorf("with the password in the URL: %v, %v", got, err)
	}
	if strings.Contains(s.URI(), "pass") {
		t.Errorf("the URI shows the password: %s", s.URI())
	}
	_, err := open(t, strings.Replace(withPassword, "me:", "you:", 1), substituter.Options{}).Query(t.Context(), []string{present(1)})
	if err == nil || strings.Contains(err.Error(), "pass") {
		t.Errorf("the error shows the password, or is none: %v", err)
	}
	if _, err := open(t, server.URL, substituter.Options{Netrc: "/nonexistent/netrc"}).Query(t.Context(), []string{present(1)}); err == nil {
		t.Error("no credentials, no error")
	}
}

func TestCancelledQueryDoesNotSpoilOthers(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	c := &fakeCache{before: func(_ http.ResponseWriter, r *http.Request, nth int64) bool {
		if strings.HasSuffix(r.URL.Path, ".narinfo") && nth == 1 {
			close(arrived)
			<-release
		}
		return false
	}}
	s := open(t, c.start(t).URL, substituter.Options{})
	why := errors.New("no longer wanted")
	ctx, cancel := context.WithCancelCause(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := s.Query(ctx, []string{present(1)})
		first <- err
	}()
	<-arrived
	second := make(chan error, 1)
	go func() {
		got, err := s.Query(t.Context(), []string{present(1)})
		if err == nil && len(got) != 1 {
			err = errors.New("not found")
		}
		second <- err
	}()
	cancel(why)
	if err := <-first; !errors.Is(err, why) {
		t.Errorf("the cancelled query gives %v", err)
	}
	close(release)
	if err := <-second; err != nil {
		t.Errorf("the other query gives %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for _, uri := range []string{"", "http://", "https://user:secret@%zz/", "file://relative"} {
		if _, err := substituter.Open(t.Context(), uri, substituter.Options{}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", uri, err)
		}
	}
	s := open(t, "s3://bucket", substituter.Options{Nix: "/nonexistent/nix-daemon"})
	if _, err := s.Query(t.Context(), []string{absent}); err == nil || !strings.Contains(err.Error(), "s3://bucket") {
		t.Errorf("without a Nix: %v", err)
	}
}

func TestNetrc(t *testing.T) {
	t.Parallel()
	const text = "# machine commented login x password y\ndefault login d password e\n" +
		"macdef init\nmachine macro login m password n\n\nmachine A.example login \"q\\\"uoted\" account z password p#w\n" +
		"machine b.example\nlogin b\npassword\nc\nmachine empty\nmachine c.example password only"
	for host, want := range map[string]*url.Userinfo{
		"a.example": url.UserPassword(`q"uoted`, "p#w"),
		"b.example": url.UserPassword("b", "c"),
		"c.example": url.UserPassword("", "only"),
		"empty":     url.UserPassword("d", "e"),
		"macro":     url.UserPassword("d", "e"),
		"commented": url.UserPassword("d", "e"),
	} {
		if got := substituter.FindNetrc(text, host); got.String() != want.String() {
			t.Errorf("%s: %v, want %v", host, got, want)
		}
	}
	if got := substituter.FindNetrc("machine x login y password z", "other"); got != nil {
		t.Errorf("credentials of another host: %v", got)
	}
}

func FuzzNetrc(f *testing.F) {
	f.Add("machine h login \"a\\\"b\" password c")
	f.Add("default login d password e\nmacdef x\nmachine h login y\n\n# c")
	f.Fuzz(func(t *testing.T, text string) {
		user := substituter.FindNetrc(text, "h")
		if user != nil && !strings.Contains(text, "machine") && !strings.Contains(text, "default") {
			t.Errorf("credentials %v out of nothing", user)
		}
	})
}
