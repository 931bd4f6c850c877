package agentclient_test

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/agentclient"
)

func TestMain(m *testing.M) {
	if url := os.Getenv("TEST_ASK_SERVICE_INFO"); url != "" {
		askServiceInfo(url)
	}
	goleak.VerifyTestMain(m)
}

// askServiceInfo is a process of its own, because net/http reads the environment only once.
func askServiceInfo(url string) {
	c, err := agentclient.New(agentclient.Options{BaseURL: url})
	if err == nil {
		_, err = c.ServiceInfo(context.Background())
	}
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	os.Exit(0)
}

func TestProxyOfTheEnvironment(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.String()
		_, _ = io.WriteString(w, `{"version":[2,0],"agentSocketBaseURL":"https://a","bulkSocketBaseURL":"https://b"}`)
	}))
	defer proxy.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "TEST_ASK_SERVICE_INFO=http://ci.acme.example", "http_proxy="+proxy.URL, "HTTP_PROXY="+proxy.URL, "NO_PROXY=", "no_proxy=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := <-asked; got != "http://ci.acme.example/api/v1/agent/service-info" {
		t.Errorf("the proxy was asked for %s", got)
	}
}

const (
	drv  = "/nix/store/8vfnpkz8v9a0qcpjb4salpmmxc3lgn3n-greeter+1.4?=%2F.drv"
	task = agentapi.ID("7c1e0002-52f4-4a6b-9b0d-3e8f6a21001e")
)

var start = agentapi.StartInfo{ID: "7c1e0004-52f4-4a6b-9b0d-3e8f6a21002c", StartTime: time.Date(2026, 2, 1, 9, 30, 15, 0, time.UTC)}

// strict is a coordinator that refuses what the real one would: it looks at method, escaped path, token,
// content type and the document.
type strict struct {
	t       *testing.T
	replies map[string]string

	mu  sync.Mutex
	log []string
}

func (s *strict) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.Method + " " + r.URL.EscapedPath()
	path, ok := strings.CutPrefix(strings.Replace(path, "/prefix/api/v1/", "", 1), "")
	body, err := io.ReadAll(r.Body)
	if err != nil || !ok {
		s.t.Error(err)
	}
	var doc any
	wantToken := "Bearer session-token"
	switch {
	case path == "GET agent/service-info":
		wantToken = ""
	case path == "POST agent/session":
		wantToken, doc = "Bearer join-token", &agentapi.CreateAgentSession{}
	case path == "POST agent/goodbye":
		doc = &agentapi.StartInfo{}
	case path == "POST tasks/"+string(task):
		doc = &agentapi.TaskStatus{}
	case path == "POST tasks/"+string(task)+"/eval":
		doc = &[]agentapi.EvaluateEvent{}
	case path == "POST tasks/"+string(task)+"/build":
		doc = &[]agentapi.BuildEvent{}
	case path == "GET agent/eval-build/%2Fnix%2Fstore%2F8vfnpkz8v9a0qcpjb4salpmmxc3lgn3n-greeter+1.4%3F=%252F.drv":
	default:
		s.t.Errorf("no such endpoint: %s", path)
	}
	if got := r.Header.Get("Authorization"); got != wantToken {
		s.t.Errorf("%s: Authorization %q", path, got)
	}
	if (doc != nil) != (r.Method == http.MethodPost) {
		s.t.Errorf("%s: wrong method", path)
	}
	if doc != nil {
		if got := r.Header.Get("Content-Type"); got != "application/json;charset=utf-8" {
			w.WriteHeader(http.StatusUnsupportedMediaType)
			s.t.Errorf("%s: Content-Type %q", path, got)
		}
		if err := agentapi.Unmarshal(body, doc); err != nil {
			s.t.Errorf("%s: %v", path, err)
		}
	} else if len(body) > 0 {
		s.t.Errorf("%s: a body", path)
	}
	s.mu.Lock()
	s.log = append(s.log, path+" "+string(body))
	s.mu.Unlock()
	reply, wanted := s.replies[path]
	if accepts := r.Header.Get("Accept") != ""; accepts != wanted {
		s.t.Errorf("%s: Accept %q", path, r.Header.Get("Accept"))
	}
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") && reply != "" {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, reply)
		_ = z.Close()
		return
	}
	if !wanted {
		w.WriteHeader(http.StatusNoContent) // any 2xx is a success
	}
}

func newClient(t *testing.T, url string, log *slog.Logger) *agentclient.Client {
	t.Helper()
	c, err := agentclient.New(agentclient.Options{BaseURL: url, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	return c
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	s := &strict{t: t, replies: map[string]string{
		"GET agent/service-info": `{"version":[2,0],"agentSocketBaseURL":"https://a","bulkSocketBaseURL":"https://b","new":1}`,
		"POST agent/session":     `"session-token"`,
		"GET agent/eval-build/%2Fnix%2Fstore%2F8vfnpkz8v9a0qcpjb4salpmmxc3lgn3n-greeter+1.4%3F=%252F.drv": `["7c1e0005-52f4-4a6b-9b0d-3e8f6a210033","Building"]`,
	}}
	ts := httptest.NewServer(s)
	defer ts.Close()
	ctx := t.Context()
	c := newClient(t, ts.URL+"/prefix/", nil)
	info, err := c.WithToken("never sent here").ServiceInfo(ctx)
	want := &agentapi.ServiceInfo{Version: agentapi.Version{2, 0}, AgentSocketBaseURL: "https://a", BulkSocketBaseURL: "https://b"}
	if d := cmp.Diff(want, info); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}
	session, err := c.CreateSession(ctx, "join-token", agentapi.AgentInfo{})
	if session != "session-token" || err != nil {
		t.Errorf("session %q, %v", session, err)
	}
	c = c.WithToken(session)
	state, err := c.EvalBuild(ctx, drv)
	if d := cmp.Diff(&agentapi.EvalBuild{Attempt: "7c1e0005-52f4-4a6b-9b0d-3e8f6a210033", Status: agentapi.Building}, state); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}
	for _, err := range []error{
		c.PostEvaluateEvents(ctx, task, nil),
		c.PostEvaluateEvents(ctx, task, []agentapi.EvaluateEvent{{PushedAll: &agentapi.PushedAll{Cache: "c"}}}),
		c.PostBuildEvents(ctx, task, nil),
		c.PostTaskStatus(ctx, task, agentapi.TaskStatus{Successful: &agentapi.Unit{}}),
		c.Goodbye(ctx, start),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	wantLog := []string{
		"POST tasks/7c1e0002-52f4-4a6b-9b0d-3e8f6a21001e/eval []",
		`POST tasks/7c1e0002-52f4-4a6b-9b0d-3e8f6a21001e/eval [{"tag":"PushedAll","contents":{"cache":"c"}}]`,
		"POST tasks/7c1e0002-52f4-4a6b-9b0d-3e8f6a21001e/build []",
		`POST tasks/7c1e0002-52f4-4a6b-9b0d-3e8f6a21001e {"tag":"Successful","contents":[]}`,
		`POST agent/goodbye {"id":"7c1e0004-52f4-4a6b-9b0d-3e8f6a21002c","startTime":"2026-02-01T09:30:15Z"}`,
	}
	if d := cmp.Diff(wantLog, s.log[3:]); d != "" {
		t.Error(d)
	}
}

func TestEvalBuildNotPlanned(t *testing.T) {
	t.Parallel()
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "null") }))
	defer ts.Close()
	state, err := newClient(t, ts.URL, nil).EvalBuild(t.Context(), drv)
	if state != nil || err != nil {
		t.Errorf("%v, %v", state, err)
	}
}

func TestWhatHasNoEncodingIsNotSent(t *testing.T) {
	t.Parallel()
	c := newClient(t, "http://127.0.0.1:1", nil)
	if err := c.PostTaskStatus(t.Context(), task, agentapi.TaskStatus{}); err == nil || !strings.Contains(err.Error(), "has no value") {
		t.Errorf("got %v", err)
	}
}

// failing is a transport in a bubble that fails a number of times.
type failing struct {
	failures int
	times    []time.Duration
	begin    time.Time
}

func (f *failing) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	f.times = append(f.times, time.Since(f.begin).Round(100*time.Millisecond))
	if len(f.times) <= f.failures {
		if len(f.times)%2 == 0 {
			return nil, errors.New("no network")
		}
		return &http.Response{StatusCode: 400 + len(f.times), Body: http.NoBody}, nil
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("null"))}, nil
}

func seconds(list ...float64) (d []time.Duration) {
	sum := 0.0
	for _, s := range list {
		sum += s
		d = append(d, time.Duration(sum*1e9).Round(100*time.Millisecond))
	}
	return d
}

func TestRetryPolicies(t *testing.T) {
	t.Parallel()
	const e1, e2, e3, e4 = 2.71828, 7.38906, 20.08554, 54.59815
	tests := map[string]struct {
		call     func(context.Context, *agentclient.Client) error
		failures int
		want     []time.Duration
		fails    bool
	}{
		"none":            {func(ctx context.Context, c *agentclient.Client) error { _, err := c.ServiceInfo(ctx); return err }, 1, seconds(0), true},
		"default":         {func(ctx context.Context, c *agentclient.Client) error { _, err := c.EvalBuild(ctx, drv); return err }, 99, seconds(0, e1, e2, e3, e4, 60, 60, 60, 60, 60, 60), true},
		"default success": {func(ctx context.Context, c *agentclient.Client) error { return c.PostBuildEvents(ctx, task, nil) }, 3, seconds(0, e1, e2, e3), false},
		"quick": {func(ctx context.Context, _ *agentclient.Client) error {
			return agentclient.Retry(ctx, agentclient.Quick, nil, "", func(context.Context) error { return errors.New("no") })
		}, 0, nil, true},
		"endless": {func(ctx context.Context, c *agentclient.Client) error { return c.Goodbye(ctx, start) }, 14, seconds(0, e1, e2, e3, e4, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &failing{failures: tt.failures, begin: time.Now()}
				c, err := agentclient.New(agentclient.Options{BaseURL: "http://x", Transport: f})
				if err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				if err := tt.call(t.Context(), c); (err != nil) != tt.fails {
					t.Errorf("got %v", err)
				}
				if d := cmp.Diff(tt.want, f.times); d != "" {
					t.Error(d)
				}
				if got := time.Since(begin).Round(100 * time.Millisecond); name == "quick" && got != seconds(e1, e2, e3, e4)[3] {
					t.Errorf("quick took %v", got)
				}
			})
		})
	}
}

func TestRetryEndsWithContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &failing{failures: 1 << 30, begin: time.Now()}
		c, err := agentclient.New(agentclient.Options{BaseURL: "http://x", Transport: f})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		err = c.Goodbye(ctx, start)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "POST agent/goodbye: ") {
			t.Errorf("got %v", err)
		}
	})
}

func TestErrorsShowTheAnswerButNoToken(t *testing.T) {
	t.Parallel()
	const secret = "session-token-that-nobody-may-see"
	for name, body := range map[string]string{
		"whole": "bad token " + secret + ", sorry",
		"cut":   strings.Repeat("x", 480) + secret + "tail that is never shown",
		"huge":  strings.Repeat(secret+" ", 1<<16),
		"ok":    "\xff no idea",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusUnauthorized)
				_, _ = io.WriteString(w, body)
			}))
			defer ts.Close()
			_, err := newClient(t, ts.URL, nil).CreateSession(t.Context(), secret, agentapi.AgentInfo{})
			status, ok := errors.AsType[*agentclient.StatusError](err)
			if !ok || status.Status != 401 || !strings.HasPrefix(err.Error(), "POST agent/session: 401 Unauthorized: ") {
				t.Fatalf("got %v", err)
			}
			if strings.Contains(err.Error(), secret[:10]) || len(err.Error()) > 1000 {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	redirect := func(from, to string, code int) {
		mux.HandleFunc(from, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, code) })
	}
	redirect("GET /old/api/v1/agent/service-info", "/api/v1/agent/service-info", http.StatusFound)
	redirect("POST /old/api/v1/agent/session", "/api/v1/agent/session", http.StatusTemporaryRedirect)
	redirect("POST /gone/api/v1/agent/session", "/api/v1/agent/service-info", http.StatusFound)
	redirect("GET /loop/api/v1/agent/service-info", "/loop/api/v1/agent/service-info", http.StatusFound)
	mux.HandleFunc("GET /api/v1/agent/service-info", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"version":[2,0],"agentSocketBaseURL":"https://a","bulkSocketBaseURL":"https://b"}`)
	})
	mux.HandleFunc("POST /api/v1/agent/session", func(w http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); len(body) < 10 {
			t.Error("the body is lost")
		}
		_, _ = io.WriteString(w, `"s"`)
	})
	ts := httptest.NewServer(mux)
	defer ts.Close()
	ctx := t.Context()
	if _, err := newClient(t, ts.URL+"/old", nil).ServiceInfo(ctx); err != nil {
		t.Error(err)
	}
	if _, err := newClient(t, ts.URL+"/old", nil).CreateSession(ctx, "j", agentapi.AgentInfo{}); err != nil {
		t.Error(err)
	}
	if _, err := newClient(t, ts.URL+"/gone", nil).CreateSession(ctx, "j", agentapi.AgentInfo{}); err == nil || !strings.Contains(err.Error(), "change apiBaseUrl") {
		t.Errorf("got %v", err)
	}
	if _, err := newClient(t, ts.URL+"/loop", nil).ServiceInfo(ctx); err == nil || !strings.Contains(err.Error(), "more than 10 redirects") {
		t.Errorf("got %v", err)
	}
}

func TestBadAnswers(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		"<html>log in":               `answer of type "text/html; charset=utf-8"`,
		`""`:                         "the session token is empty",
		"eyJ.a.b":                    "a string should be",
		`"x" "y"`:                    "after the end",
		strings.Repeat(" ", 5<<20):   "larger than",
		`["a token in something's"]`: "an array where a string should be",
	} {
		ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
		_, err := newClient(t, ts.URL, nil).CreateSession(t.Context(), "j", agentapi.AgentInfo{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v", body, err)
		}
		ts.Close()
	}
}

func TestBadBaseURLs(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"", "hercules-ci.com", "ftp://x", "http://", "wss://x", "http://a b"} {
		if _, err := agentclient.New(agentclient.Options{BaseURL: u}); err == nil {
			t.Errorf("%q is accepted", u)
		}
	}
}

func TestSilentServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer there.Close() //nolint:errcheck // a test
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.ResponseHeaderTimeout = 30 * time.Second
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return here, nil }
		go io.Copy(io.Discard, there) //nolint:errcheck // ends with the pipe
		c, err := agentclient.New(agentclient.Options{BaseURL: "http://x", Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_, err = c.ServiceInfo(t.Context())
		if got := time.Since(begin); err == nil || got != 30*time.Second {
			t.Errorf("%v after %v", err, got)
		}
	})
}

func TestRetriesAreLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		c, err := agentclient.New(agentclient.Options{BaseURL: "http://x", Transport: &failing{failures: 1, begin: time.Now()}, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.WithToken("secret").Goodbye(t.Context(), start); err != nil {
			t.Error(err)
		}
		want := "level=WARN msg=\"request failed, trying again\" request=\"POST agent/goodbye\" attempt=1 delay=2.718s error=\"POST agent/goodbye: 401 Unauthorized\"\n"
		if d := cmp.Diff(want, out.String()); d != "" {
			t.Error(d)
		}
	})
}
