package push_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"hercules/internal/coordinator/cache"
	"hercules/internal/formats"
	"hercules/internal/push"
	"hercules/internal/push/fault"
	"hercules/internal/secrets"
	"hercules/internal/testnix"
)

// box is a server of the Cachix protocol.
type box struct {
	*httptest.Server
	*cache.Cache
	// before is asked first; true: it has answered.
	before func(w http.ResponseWriter, r *http.Request) bool
}

func newBox(t testing.TB, o cache.Options) *box {
	t.Helper()
	b := &box{}
	o.Name, o.Public, o.NoSync = "main", true, true
	o.WriteTokens = append(o.WriteTokens, secrets.NewSensitive("write-token"))
	o.ReadTokens = append(o.ReadTokens, secrets.NewSensitive("read-token"))
	c, err := cache.Open(t.TempDir(), o)
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	handler := c.Handler()
	b.Cache = c
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b.before == nil || !b.before(w, r) {
			handler.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(b.Server.Close)
	return b
}

func (b *box) entry(token string, keys ...secrets.Sensitive) secrets.BinaryCache {
	return secrets.BinaryCache{
		Name: "main", Kind: formats.KindCachixCache, APIBaseURL: b.URL, AuthToken: secrets.NewSensitive(token), SigningKeys: keys,
	}
}

// big is a derivation with an archive of several parts, which hardly compresses, and a compressible one.
const big = `sh "big" { dep = sh "zeros" {} "head -c 30000000 /dev/zero > $out"; } "mkdir $out; head -c 21000000 /dev/urandom > $out/random; echo $dep > $out/dep"`

func TestCachix(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n))
		for name, test := range map[string]struct {
			expr        string
			compression string
			signed      bool
		}{
			"small, signed by the service": {expr: closure},
			"small, signed by us":          {expr: closure, signed: true},
			"parts, zstd":                  {expr: big, compression: "zstd"},
			"parts, xz":                    {expr: big, compression: "xz", signed: true},
		} {
			t.Run(name, func(t *testing.T) {
				path := s.Build(test.expr)
				o := cache.Options{}
				var keys []secrets.Sensitive
				secret, public := keypair(t, "main.cachix.org-1")
				if test.signed {
					o.ClientKeys = []string{public}
					keys = append(keys, secret)
				}
				b := newBox(t, o)
				if !test.signed {
					public = b.PublicKey()
				}
				entry := b.entry("write-token", keys...)
				entry.Compression = test.compression
				p := open(t, s, entry)
				must(t, p.Push(t.Context(), []string{path}, push.Options{}))
				from := entry.Substituter()
				to := substitute(t, n, from, public, path)
				if got, want := len(closureOf(t, to, path)), len(closureOf(t, s, path)); got != want {
					t.Errorf("%d paths of %d", got, want)
				}
				drv := to.Run("nix-store", "-q", "--deriver", path)
				if want := s.Run("nix-store", "-q", "--deriver", path); drv != want {
					t.Errorf("deriver %s, not %s", drv, want)
				}
				must(t, p.Push(t.Context(), []string{path}, push.Options{Done: func(d push.Done) error {
					if d.Uploaded != 0 {
						t.Errorf("again: %+v", d)
					}
					return nil
				}}))
			})
		}
	})
}

// A service that stumbles: everything that may pass passes.
func TestCachixStumbles(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(closure)
	b := newBox(t, cache.Options{})
	var mu sync.Mutex
	seen := map[string]int{}
	b.before = func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		kind := r.Method + strings.Join(strings.Split(r.URL.Path, "/")[:min(6, strings.Count(r.URL.Path, "/")+1)], "/")
		if strings.HasSuffix(r.URL.Path, "/complete") {
			kind += "/complete"
		}
		seen[kind]++
		n := seen[kind]
		mu.Unlock()
		switch n {
		case 1:
			w.WriteHeader(http.StatusBadGateway)
		case 2:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
		case 3:
			panic(http.ErrAbortHandler)
		default:
			return false
		}
		return true
	}
	p := open(t, s, b.entry("write-token"))
	must(t, p.Push(t.Context(), []string{path}, push.Options{}))
	substitute(t, s.Nix(), b.URL+"/api/v1/cache/main", b.PublicKey(), path)
}

// The answer to complete is lost, and the service refuses the second one.
func TestCachixLosesAnswer(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(`sh "one" {} "echo > $out"`)
	b := newBox(t, cache.Options{})
	var completes atomic.Int32
	handler := b.Handler()
	b.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/complete") {
			return false
		}
		if completes.Add(1) == 1 {
			handler.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	}
	p := open(t, s, b.entry("write-token"))
	must(t, p.Push(t.Context(), []string{path}, push.Options{}))
	if completes.Load() != 2 {
		t.Errorf("%d completes", completes.Load())
	}
}

func TestCachixRefuses(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(closure)
	for name, test := range map[string]struct {
		token  string
		before func(w http.ResponseWriter, r *http.Request) bool
		kind   fault.Kind
		text   string
	}{
		"wrong token": {token: "wrong", kind: fault.Auth, text: "authToken"},
		"read token":  {token: "read-token", kind: fault.Auth, text: "authToken"},
		"413": {token: "write-token", kind: fault.Permanent, text: "size", before: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
			}
			return r.Method == http.MethodPut
		}},
		"5xx for ever": {token: "write-token", kind: fault.Transient, text: "503", before: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/multipart-nar") {
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}
			return false
		}},
		"not the protocol": {token: "write-token", kind: fault.Permanent, text: "protocol", before: func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprint(w, "<html>")
			return true
		}},
		"too patient": {token: "write-token", kind: fault.Transient, text: "429", before: func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "86400")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, cache.Options{})
			b.before = test.before
			d := deps(t, s)
			d.Retry.Total = 100e6
			p, err := push.Open([]secrets.BinaryCache{b.entry(test.token)}, d)
			must(t, err)
			defer p.Close()
			err = p.Push(t.Context(), []string{path}, push.Options{})
			e, ok := errors.AsType[*push.Error](err)
			if !ok || e.Cache != "main" || e.Kind != test.kind || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v (%v)", err, e)
			}
			if strings.Contains(fmt.Sprint(err), "token"+"-secret") || strings.Contains(fmt.Sprint(err), test.token) && test.token == "write-token" {
				t.Errorf("the token is in the error: %v", err)
			}
			if st := b.Stats(); st.Paths != 0 {
				t.Errorf("the cache has something: %+v", st)
			}
		})
	}
}
