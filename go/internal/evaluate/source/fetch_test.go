package source_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hercules/internal/evaluate/source"
)

var soon = []time.Duration{time.Millisecond, time.Millisecond}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// newFetcher has a transport of its own, so that no connection is left.
func newFetcher(t *testing.T) *source.Fetcher {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &source.Fetcher{Client: &http.Client{Transport: transport}, Retry: soon}
}

func TestFetchPutsInputsInPlace(t *testing.T) {
	t.Parallel()
	wrapped := archive(t, dir("widgets-3f9b0c4d"), file("widgets-3f9b0c4d/ci.nix", "1"))
	flat := archive(t, file("a.nix", "2"), file("b.nix", "3"))
	single := archive(t, file("only.nix", "4"))
	sealed := dir("x")
	sealed.h.Mode = 0o555
	readOnly := archive(t, sealed, file("x/f", "5"))
	bodies := map[string][]byte{"/wrapped": wrapped, "/flat": flat, "/single": single, "/read-only": readOnly}
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for _, h := range []string{"Authorization", "Cookie"} {
			if r.Header.Get(h) != "" {
				t.Errorf("the request for %s has %s", r.URL, h)
			}
		}
		if r.Method != http.MethodGet {
			t.Errorf("method %s", r.Method)
		}
		_, _ = w.Write(bodies[r.URL.Path])
	})
	to := t.TempDir()
	got, err := newFetcher(t).FetchAll(t.Context(), to, []source.Input{
		{Name: "src", URL: url + "/wrapped", Directory: "widgets"},
		{Name: "pkgs", URL: url + "/flat"},
		{Name: "one", URL: url + "/single", Directory: "../evil"},
		{Name: "ro", URL: url + "/read-only", Directory: "named"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"src": "arg-src/widgets", "pkgs": "arg-pkgs", "one": "arg-one", "ro": "arg-ro/named"} {
		if rel, _ := filepath.Rel(to, got[name]); rel != want {
			t.Errorf("%s is at %s, want %s", name, rel, want)
		}
	}
	for _, f := range []string{"arg-src/widgets/ci.nix", "arg-pkgs/a.nix", "arg-pkgs/b.nix", "arg-one/only.nix", "arg-ro/named/f"} {
		if _, err := os.Stat(filepath.Join(to, f)); err != nil {
			t.Error(err)
		}
	}
}

func TestFetchFailures(t *testing.T) {
	t.Parallel()
	good := archive(t, file("a/default.nix", strings.Repeat("null # text\n", 100)))
	const secret = "s3cr3t"
	tests := []struct {
		name    string
		handler func(n int32, w http.ResponseWriter, r *http.Request)
		want    string // error, without the beginning; empty: succeeds
		tries   int32
	}{
		{"not found is final", func(_ int32, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(404)
			fmt.Fprint(w, "\n  no such \x1b[31mtarball \nmore lines")
		}, "the server answered 404 Not Found: no such  [31mtarball", 1},
		{"forbidden is final", func(_ int32, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, "the server answered 403 Forbidden", 1},
		{"unavailable passes", func(n int32, w http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				w.WriteHeader(503)
				return
			}
			_, _ = w.Write(good)
		}, "", 2},
		{"too many requests passes", func(n int32, w http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				w.WriteHeader(429)
				return
			}
			_, _ = w.Write(good)
		}, "", 2},
		{"unavailable for good", func(_ int32, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, "the server answered 500 Internal Server Error", 3},
		{"connection breaks at the start", func(n int32, w http.ResponseWriter, _ *http.Request) {
			if n < 3 {
				panic(http.ErrAbortHandler)
			}
			_, _ = w.Write(good)
		}, "", 3},
		{"connection breaks in the body", func(n int32, w http.ResponseWriter, _ *http.Request) {
			if n < 2 {
				w.Header().Set("Content-Length", fmt.Sprint(len(good)))
				_, _ = w.Write(good[:len(good)/2])
				panic(http.ErrAbortHandler)
			}
			_, _ = w.Write(good)
		}, "", 2},
		{"connection always breaks", func(_ int32, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(good)))
			_, _ = w.Write(good[:len(good)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, "the connection broke: unexpected EOF", 3},
		{"truncated archive is final", func(_ int32, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(good[:len(good)/2]) }, "unpacking its archive", 1},
		{"an error page with status 200", func(_ int32, w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>sign in</html>") }, "unpacking its archive: it is not a gzipped tar archive", 1},
		{"stands still", func(_ int32, w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(good[:20])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, "nothing came for 50ms", 3},
		{"redirect", func(n int32, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				http.Redirect(w, r, "/elsewhere", http.StatusFound)
				return
			}
			_, _ = w.Write(good)
		}, "", 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int32
			url := serve(t, func(w http.ResponseWriter, r *http.Request) { test.handler(n.Add(1), w, r) })
			f := newFetcher(t)
			f.Idle = 50 * time.Millisecond
			to := t.TempDir()
			got, err := f.Fetch(t.Context(), to, source.Input{Name: "src", URL: url + "/t.tar.gz?token=" + secret})
			switch {
			case test.want == "" && err != nil:
				t.Fatal(err)
			case test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), `input "src" from `+url+"/t.tar.gz: "+test.want)):
				t.Errorf("got error %q, want %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the error has the URL's query: %v", err)
			}
			if n.Load() != test.tries {
				t.Errorf("%d tries, want %d", n.Load(), test.tries)
			}
			entries, _ := os.ReadDir(to)
			if err != nil && len(entries) > 0 || err == nil && (len(entries) != 1 && len(entries) != 2) {
				t.Errorf("left %v after %v (%s)", entries, err, got)
			}
		})
	}
}

func TestFetchRefusesOddTasks(t *testing.T) {
	t.Parallel()
	for _, in := range []source.Input{
		{Name: "../x", URL: "https://x.invalid/"},
		{Name: "", URL: "https://x.invalid/"},
		{Name: "src", URL: "file:///etc/passwd"},
		{Name: "src", URL: "://"},
		{Name: "src", URL: ""},
	} {
		f := newFetcher(t)
		if _, err := f.Fetch(t.Context(), t.TempDir(), in); err == nil {
			t.Errorf("%+v was fetched", in)
		}
	}
}

func TestFetchConnectionErrorsAreRetriedAndKeepSecrets(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	var notes []string
	f := newFetcher(t)
	f.Note = func(s string) { notes = append(notes, s) }
	_, err := f.Fetch(t.Context(), t.TempDir(), source.Input{Name: "src", URL: strings.Replace(s.URL, "://", "://user:s3cr3t@", 1) + "/a?s3cr3t"})
	if err == nil || !strings.Contains(err.Error(), "connection refused") || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("got %v", err)
	}
	if len(notes) != 2 {
		t.Errorf("got notes %q, want one for each retry", notes)
	}
}

func TestFetchIsCancelled(t *testing.T) {
	t.Parallel()
	reached := make(chan struct{})
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		close(reached)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	want := errors.New("somebody said so")
	go func() { <-reached; cancel(want) }()
	to := t.TempDir()
	_, err := newFetcher(t).FetchAll(ctx, to, []source.Input{{Name: "src", URL: url}})
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
	if entries, _ := os.ReadDir(to); len(entries) != 0 {
		t.Errorf("left %v", entries)
	}
}
