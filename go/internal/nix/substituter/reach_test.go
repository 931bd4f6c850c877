package substituter_test

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/nix/substituter"
)

// nowhere is a URL at which nothing listens.
func nowhere(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// A host that is not there is not asked twice.
func TestUnreachableIsFinal(t *testing.T) {
	t.Parallel()
	for name, uri := range map[string]string{
		"nobody listens": nowhere(t),
		"no such name":   "https://cache.invalid", // RFC 2606: never a name
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// One pause would take longer than the test may.
			s, err := substituter.Open(t.Context(), uri, substituter.Options{Backoff: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			_, err = s.Query(t.Context(), []string{absent})
			if _, ok := errors.AsType[*substituter.UnreachableError](err); !ok {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestReach(t *testing.T) {
	t.Parallel()
	good := &fakeCache{}
	broken := httptest.NewServer(http.NotFoundHandler())
	defer broken.Close()
	refused := nowhere(t)
	uris := []string{"file:///absent", refused, good.start(t).URL, "s3://bucket", broken.URL, "https://cache.invalid"}
	r := substituter.NewReach(substituter.Options{})
	defer r.Close()
	for range 3 {
		usable, failed := r.Among(t.Context(), uris)
		if d := cmp.Diff([]string{uris[0], uris[2], uris[3], uris[4]}, usable); d != "" {
			t.Error(d)
		}
		if len(failed) != 2 || failed[0].URI != refused || !strings.Contains(failed[0].Err.Error(), "refused") || failed[1].URI != uris[5] {
			t.Errorf("failed: %+v", failed)
		}
	}
	if n := good.count("nix-cache-info"); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// A cache that says nothing costs a moment once, and nothing after Close.
func TestReachWithoutAnswer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := substituter.NewReach(substituter.Options{})
	uris := []string{"http://" + l.Addr().String()}
	if usable, failed := r.Among(t.Context(), uris); len(usable) != 1 || len(failed) != 0 {
		t.Errorf("%v %v", usable, failed)
	}
	r.Close()
	if usable, _ := r.Among(t.Context(), uris); len(usable) != 1 {
		t.Errorf("after Close: %v", usable)
	}
}
