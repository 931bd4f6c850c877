package push_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
	"hercules/internal/push"
	"hercules/internal/push/fault"
	"hercules/internal/testnix"
)

// Tasks that want the same paths there upload each once.
func TestConcurrentPushesShare(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(closure)
	c := newWebCache(t)
	p := open(t, s, nixCache("main", c.URL))
	var wg sync.WaitGroup
	var uploaded atomic.Int64
	for range 8 {
		wg.Go(func() {
			err := p.Push(t.Context(), []string{path}, push.Options{Done: func(d push.Done) error {
				uploaded.Add(int64(d.Uploaded))
				return nil
			}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if uploaded.Load() != 15 {
		t.Errorf("%d uploads of 15 paths", uploaded.Load())
	}
	for name, n := range c.puts {
		if n != 1 {
			t.Errorf("%s was put %d times", name, n)
		}
	}
	if n := len(c.requests("HEAD")); n > 15*8 {
		t.Errorf("%d questions", n)
	}
}

// At every moment all references of what is visible are visible.
func TestReferencesComeFirst(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(closure)
	c := newWebCache(t)
	var mu sync.Mutex
	visible := map[string]bool{}
	c.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, ".narinfo") {
			return false
		}
		part := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/"), ".narinfo")
		mu.Lock()
		defer mu.Unlock()
		for _, p := range closureOf(t, s, path) {
			if storepath.HashPart(p) != part {
				continue
			}
			for _, ref := range strings.Fields(s.Run("nix-store", "-q", "--references", p)) {
				if ref != p && !visible[storepath.HashPart(ref)] {
					t.Errorf("%s came before its reference %s", p, ref)
				}
			}
		}
		visible[part] = true
		return false
	}
	p := open(t, s, nixCache("main", c.URL))
	must(t, p.Push(t.Context(), []string{path}, push.Options{Uploads: 16}))
	if len(visible) != 15 {
		t.Errorf("%d paths", len(visible))
	}
}

// One task leaves while another waits for the same upload: that goes on. When all have left, it ends.
func TestCancelLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(`sh "one" {} "echo > $out"`)
	c := newWebCache(t)
	started, proceed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/nar/") {
			_, _ = io.Copy(io.Discard, r.Body) // only then the server notices that the client has gone
			once.Do(func() { close(started) })
			select {
			case <-proceed:
			case <-r.Context().Done():
			}
		}
		return false
	}
	p := open(t, s, nixCache("main", c.URL))
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- p.Push(ctx, []string{path}, push.Options{}) }()
	<-started
	go func() { second <- p.Push(t.Context(), []string{path}, push.Options{}) }()
	for push.Waiting(p, path) < 2 {
		runtime.Gosched()
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	close(proceed)
	must(t, <-second)
	if n := len(c.requests("PUT /nar/")); n != 1 {
		t.Errorf("%d uploads", n)
	}
}

func TestCancelEndsUploads(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(closure)
	c := newWebCache(t)
	ctx, cancel := context.WithCancel(t.Context())
	c.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/nar/") {
			_, _ = io.Copy(io.Discard, r.Body) // only then the server notices that the client has gone
			cancel()
			<-r.Context().Done()
			return true
		}
		return false
	}
	p, err := push.Open(caches(nixCache("main", c.URL)), deps(t, s))
	must(t, err)
	if err := p.Push(ctx, []string{path}, push.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	p.Close()
	if n := len(c.requests("PUT")) - len(c.requests("PUT /nar/")); n != 1 { // nix-cache-info
		t.Errorf("%d other puts", n)
	}
}

// What a server may answer, and what becomes of it.
func TestServerFaults(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(closure)
	put := func(r *http.Request) bool {
		return r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/nar/")
	}
	answer := func(status int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if put(r) {
				w.WriteHeader(status)
			}
			return put(r)
		}
	}
	var stumbles atomic.Int32
	for name, test := range map[string]struct {
		before func(http.ResponseWriter, *http.Request) bool
		kind   fault.Kind
		text   string // empty: it works in the end
	}{
		"401": {before: answer(401), kind: fault.Auth, text: "401"},
		"403": {before: answer(403), kind: fault.Auth, text: "403"},
		"413": {before: answer(413), kind: fault.Permanent, text: "of this size"},
		"507": {before: answer(507), kind: fault.Permanent, text: "507"},
		"503": {before: answer(503), kind: fault.Transient, text: "503"},
		"closes in the middle, for ever": {before: func(w http.ResponseWriter, r *http.Request) bool {
			if put(r) {
				panic(http.ErrAbortHandler)
			}
			return false
		}, kind: fault.Transient, text: ""},
		"stumbles": {before: func(w http.ResponseWriter, r *http.Request) bool {
			switch stumbles.Add(1) % 4 {
			case 0:
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusTooManyRequests)
			case 1:
				panic(http.ErrAbortHandler)
			case 2:
				w.WriteHeader(http.StatusBadGateway)
			default:
				return false
			}
			return true
		}},
		"no HEAD": {before: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
			}
			return r.Method == http.MethodHead
		}},
		"another store directory": {before: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/nix-cache-info" {
				fmt.Fprint(w, "StoreDir: /gnu/store\n")
			}
			return r.URL.Path == "/nix-cache-info"
		}, kind: fault.Permanent, text: "/gnu/store"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newWebCache(t)
			c.before = test.before
			d := deps(t, s)
			if !strings.Contains(name, "stumbles") {
				d.Retry.Total = 50e6
			}
			p, err := push.Open(caches(nixCache("main", c.URL)), d)
			must(t, err)
			defer p.Close()
			err = p.Push(t.Context(), []string{path}, push.Options{})
			if test.text == "" && test.kind == fault.Permanent {
				must(t, err)
				return
			}
			e, ok := errors.AsType[*push.Error](err)
			if !ok || e.Cache != "main" || e.Kind != test.kind || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("error %v", err)
			}
			if strings.HasPrefix(test.text, "4") && !strings.HasPrefix(e.Path, "/nix/store/") {
				t.Errorf("the error has no path: %v", err)
			}
			if found, _ := filepath.Glob(filepath.Join(c.dir, "*.narinfo")); found != nil {
				t.Errorf("visible: %v", found)
			}
		})
	}
}

func TestCorruptPath(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(`sh "one" {} "echo text > $out"`)
	must(t, os.Chmod(s.Real(path), 0o644))
	must(t, os.WriteFile(s.Real(path), []byte("TEXT\n"), 0o644))
	c, b := newWebCache(t), t.TempDir()
	to := testnix.New(t)
	secret, _ := keypair(t, "k-1")
	for _, uri := range []string{c.URL, "file://" + b, to.DirectRemote()} {
		p := open(t, s, nixCache("main", uri, secret))
		err := p.Push(t.Context(), []string{path}, push.Options{})
		if e, ok := errors.AsType[*push.Error](err); !ok || e.Path != path || !strings.Contains(err.Error(), "corrupt") {
			t.Errorf("%s: error %v", uri, err)
		}
	}
	if n := len(c.requests("PUT /nar/")); n != 0 {
		t.Errorf("%d uploads of a corrupt path", n)
	}
	if found, _ := filepath.Glob(filepath.Join(b, "nar", "*")); found != nil {
		t.Errorf("left behind: %v", found)
	}
}

func TestCollectedPath(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(closure)
	p := open(t, s, nixCache("main", newWebCache(t).URL))
	gone := "/nix/store/" + strings.Repeat("a", 32) + "-gone"
	err := p.Push(t.Context(), []string{gone}, push.Options{})
	if err == nil || !strings.Contains(err.Error(), gone) || !strings.Contains(err.Error(), "not in the store") {
		t.Errorf("error %v", err)
	}
	must(t, p.Push(t.Context(), []string{path}, push.Options{}))
	// What was known of the paths is not true any more.
	s.Run("nix-store", "--delete", path)
	second := newWebCache(t)
	p2 := open(t, s, nixCache("main", second.URL))
	err = p2.Push(t.Context(), []string{path}, push.Options{})
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "not in the store") {
		t.Errorf("error %v", err)
	}
}

// Collected while it is being pushed: after the store was asked, before it is read.
func TestCollectedWhilePushed(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(`sh "one" {} "echo text > $out"`)
	c := newWebCache(t)
	c.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			_ = os.Remove(s.Real(path))
		}
		return false
	}
	p := open(t, s, nixCache("main", c.URL))
	err := p.Push(t.Context(), []string{path}, push.Options{})
	if e, ok := errors.AsType[*push.Error](err); !ok || e.Path != path || e.Cache != "main" {
		t.Errorf("error %v", err)
	}
}

// While a push runs, its closure is not garbage.
func TestPushKeepsFromCollection(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(closure)
	c := newWebCache(t)
	var once sync.Once
	c.before = func(w http.ResponseWriter, r *http.Request) bool {
		once.Do(func() { s.Run("nix-store", "--gc") })
		return false
	}
	p := open(t, s, nixCache("main", c.URL))
	must(t, p.Push(t.Context(), []string{path}, push.Options{}))
}

// Built again with another result, after the pusher has heard of it.
func TestRebuiltPath(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	expr := `sh "clock" {} "head -c 30 /dev/urandom > $out"`
	path := s.Build(expr)
	c := newWebCache(t)
	secret, public := keypair(t, "k-1")
	p := open(t, s, nixCache("a", newWebCache(t).URL, secret), nixCache("b", c.URL, secret))
	must(t, p.Push(t.Context(), []string{path}, push.Options{Caches: []string{"a"}}))
	s.Run("nix-store", "--delete", path)
	if again := s.Build(expr); again != path {
		t.Fatal(again)
	}
	must(t, p.Push(t.Context(), []string{path}, push.Options{Caches: []string{"b"}}))
	substitute(t, s.Nix(), c.URL, public, path)
}

// Every key signs, and signatures that are there stay.
func TestSignatures(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(`sh "one" {} "echo > $out"`)
	first, publicFirst := keypair(t, "first-1")
	second, publicSecond := keypair(t, "second-1")
	third, publicThird := keypair(t, "third-1")
	must(t, open(t, s, nixCache("main", newWebCache(t).URL, first)).Push(t.Context(), []string{path}, push.Options{}))
	c := newWebCache(t)
	file := s.File("key", third.Reveal())
	must(t, open(t, s, nixCache("main", c.URL+"?secret-key="+file+"&write-nar-listing=true", second)).Push(t.Context(), []string{path}, push.Options{}))
	text, err := os.ReadFile(filepath.Join(c.dir, storepath.HashPart(path)+".narinfo"))
	must(t, err)
	n, err := narinfo.Parse(text)
	must(t, err)
	good, err := narinfo.Verify(n.PathInfo(), []string{publicFirst, publicSecond, publicThird})
	must(t, err)
	if len(good) != 3 || n.FileHash == "" || n.FileSize == 0 || !strings.HasSuffix(n.Deriver, ".drv") {
		t.Errorf("signed by %v:\n%s", good, text)
	}
	listing, err := os.ReadFile(filepath.Join(c.dir, storepath.HashPart(path)+".ls"))
	must(t, err)
	if got, want := string(listing), `{"version":1,"root":{"type":"regular","size":1,"narOffset":96}}`; got != want {
		t.Errorf("listing %s, not %s", got, want)
	}
	sigs := s.Run("nix", "path-info", "--sigs", path)
	for _, name := range []string{"first-1:", "second-1:", "third-1:"} {
		if !strings.Contains(sigs, name) {
			t.Errorf("the local store has not got %s: %s", name, sigs)
		}
	}
}

// A store whose files cannot be read here: archives come from the daemon.
func TestThroughDaemonOnly(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n))
		path, drv := s.Build(closure), s.Instantiate(closure)
		c := newWebCache(t)
		secret, public := keypair(t, "k-1")
		d := deps(t, s)
		d.Endpoint.Root = filepath.Join(s.Dir(), "nowhere")
		p, err := push.Open(caches(nixCache("main", c.URL, secret)), d)
		must(t, err)
		t.Cleanup(p.Close)
		must(t, p.Push(t.Context(), []string{path, drv}, push.Options{Uploads: 16}))
		substitute(t, n, c.URL, public, path)
		substitute(t, n, c.URL, public, drv)
	})
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for _, uri := range []string{
		"file://relative", "http://", "http://u:secret@[::1", "s3://", "file:///x?compression-level=high", "file:///x?compression=zstd&compression-level=99",
		"file:///x?priority=z", "file:///x?write-nar-listing=maybe", "file:///x?secret-key=/nowhere", "file:///x?store=/gnu",
	} {
		p, err := push.Open(caches(nixCache("main", uri)), push.Deps{})
		if err == nil {
			p.Close()
			t.Errorf("%s is taken", uri)
		} else if strings.Contains(err.Error(), "secret@") || !strings.Contains(err.Error(), "main") {
			t.Errorf("%s: %v", uri, err)
		}
	}
	secret, _ := keypair(t, "k")
	bad := nixCache("main", "file:///x", secret, push.Key("k:AAAA"))
	if _, err := push.Open(caches(bad), push.Deps{}); err == nil || !strings.Contains(err.Error(), "signing key 2") || strings.Contains(err.Error(), "AAAA") {
		t.Errorf("error %v", err)
	}
}
