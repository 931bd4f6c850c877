package agent_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/socket"
)

// scripted is a coordinator that refuses what the real one would, and checks what every agent has to
// obey. A test gives tasks to it and waits for what it says.
type scripted struct {
	t      testing.TB
	join   string
	server *httptest.Server
	base   string // URL as agents see it
	agents *socket.Server[agentapi.AgentPayload, agentapi.ServicePayload]
	logs   *socket.Server[agentapi.LogMessage, agentapi.ServiceInfo]

	mu       sync.Mutex
	changed  chan struct{}
	sessions []string // tokens given out
	hellos   []agentapi.Hello
	peer     *socket.Peer[agentapi.AgentPayload, agentapi.ServicePayload]
	goodbyes []agentapi.StartInfo
	tasks    map[agentapi.ID]*taskRecord
	byLog    map[string]*taskRecord
	pings    int
}

// taskRecord is what is known of a task.
type taskRecord struct {
	id        agentapi.ID
	started   int
	cancelled int
	statuses  []agentapi.TaskStatus
	events    []agentapi.BuildEvent
	eval      []agentapi.EvaluateEvent
	log       []agentapi.LogEntry
	end       *agentapi.LogEnd
}

func jwt(payload string) string {
	enc := base64.RawStdEncoding.EncodeToString
	return enc([]byte(`{"alg":"none"}`)) + "." + enc([]byte(payload)) + "." + enc([]byte("signature-secret"))
}

func newCoordinator(t testing.TB) *scripted {
	t.Helper()
	c := &scripted{
		t: t, join: jwt(`{"sub":"t$joinid"}`), changed: make(chan struct{}),
		tasks: map[agentapi.ID]*taskRecord{}, byLog: map[string]*taskRecord{},
	}
	times := socket.Times{}
	c.agents = socket.NewServer(socket.ServerConfig[agentapi.AgentPayload, agentapi.ServicePayload]{
		Greeting: func(*http.Request) agentapi.ServicePayload {
			i := c.info()
			return agentapi.ServicePayload{ServiceInfo: &i}
		},
		Identify: func(_ *http.Request, p agentapi.AgentPayload) (string, error) {
			if p.Hello == nil {
				return "", errors.New("expected Hello")
			}
			return string(p.Hello.StartInfo.ID), nil
		},
		Connected: func(peer *socket.Peer[agentapi.AgentPayload, agentapi.ServicePayload], p agentapi.AgentPayload) {
			c.update(func() { c.hellos = append(c.hellos, *p.Hello); c.peer = peer })
		},
		Receive: c.receive,
		Times:   times,
	})
	c.logs = socket.NewServer(socket.ServerConfig[agentapi.LogMessage, agentapi.ServiceInfo]{
		Greeting: func(*http.Request) agentapi.ServiceInfo { return c.info() },
		Identify: func(r *http.Request, p agentapi.LogMessage) (string, error) {
			if p.Hello == nil || p.Hello.StoreProtocolVersion < 1<<8 || p.Hello.ClientProtocolVersion < 1<<8 {
				return "", fmt.Errorf("expected Hello with versions, got %+v", p)
			}
			return bearer(r), nil
		},
		Receive: c.receiveLog,
		Times:   times,
	})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/agent/service-info", func(w http.ResponseWriter, r *http.Request) {
		if bearer(r) != "" {
			t.Error("service-info was asked with a token")
		}
		info := c.info()
		reply(w, &info)
	})
	mux.HandleFunc("POST /api/v1/agent/session", func(w http.ResponseWriter, r *http.Request) {
		if bearer(r) != c.join {
			http.Error(w, "wrong join token", http.StatusUnauthorized)
			return
		}
		var body agentapi.CreateAgentSession
		c.read(r, &body)
		var token string
		c.update(func() {
			token = jwt(fmt.Sprintf(`{"parent":"joinid","sub":"s%d"}`, len(c.sessions)))
			c.sessions = append(c.sessions, token)
		})
		reply(w, &token)
	})
	authorized := func(pattern string, f func(w http.ResponseWriter, r *http.Request)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			c.mu.Lock()
			known := strings.Contains("\n"+strings.Join(c.sessions, "\n")+"\n", "\n"+bearer(r)+"\n")
			c.mu.Unlock()
			if !known {
				http.Error(w, "unknown session", http.StatusUnauthorized)
				return
			}
			f(w, r)
		})
	}
	authorized("POST /api/v1/agent/goodbye", func(_ http.ResponseWriter, r *http.Request) {
		var start agentapi.StartInfo
		c.read(r, &start)
		c.update(func() { c.goodbyes = append(c.goodbyes, start) })
	})
	authorized("POST /api/v1/tasks/{task}", func(_ http.ResponseWriter, r *http.Request) {
		var s agentapi.TaskStatus
		c.read(r, &s)
		c.withTask(r, func(t *taskRecord) { t.statuses = append(t.statuses, s) })
	})
	authorized("POST /api/v1/tasks/{task}/build", func(_ http.ResponseWriter, r *http.Request) {
		var events []agentapi.BuildEvent
		c.read(r, &events)
		c.withTask(r, func(rec *taskRecord) {
			if len(rec.statuses) > 0 {
				t.Error("build events after the status")
			}
			rec.events = append(rec.events, events...)
		})
	})
	authorized("POST /api/v1/tasks/{task}/eval", func(_ http.ResponseWriter, r *http.Request) {
		var events []agentapi.EvaluateEvent
		c.read(r, &events)
		c.withTask(r, func(rec *taskRecord) { rec.eval = append(rec.eval, events...) })
	})
	authorized("GET /api/v1/agent/eval-build/{drv}", func(w http.ResponseWriter, _ *http.Request) {
		reply[*agentapi.EvalBuild](w, new(*agentapi.EvalBuild))
	})
	mux.HandleFunc("GET /src.tar.gz", func(w http.ResponseWriter, r *http.Request) {
		if bearer(r) != "" {
			t.Error("a source was asked for with a token")
		}
		z := gzip.NewWriter(w)
		defer z.Close()
		a := tar.NewWriter(z)
		defer a.Close()
		text := make([]byte, 1<<20)
		_ = a.WriteHeader(&tar.Header{Name: "src/default.nix", Mode: 0o644, Size: int64(len(text))})
		_, _ = a.Write(text)
	})
	authorized("GET /api/v1/agent-socket", c.agents.ServeHTTP)
	mux.HandleFunc("GET /api/v1/logs/build/socket", func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		known := c.byLog[bearer(r)] != nil
		c.mu.Unlock()
		if !known {
			http.Error(w, "unknown log token", http.StatusUnauthorized)
			return
		}
		c.logs.ServeHTTP(w, r)
	})
	c.server = httptest.NewServer(mux)
	t.Cleanup(func() {
		c.agents.Close()
		c.logs.Close()
		c.server.Close()
	})
	return c
}

func (c *scripted) info() agentapi.ServiceInfo {
	return agentapi.ServiceInfo{Version: agentapi.Version{2, 0}, AgentSocketBaseURL: c.base, BulkSocketBaseURL: c.base + "/"}
}

func bearer(r *http.Request) string {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token
}

func reply[T any](w http.ResponseWriter, v *T) {
	b, err := agentapi.Marshal(v)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	_, _ = w.Write(b)
}

// read is strict about what an agent sends.
func (c *scripted) read(r *http.Request, v any) {
	if ct := r.Header.Get("Content-Type"); !strings.HasPrefix(ct, "application/json") {
		c.t.Errorf("%s %s has content type %q", r.Method, r.URL.Path, ct)
	}
	b, err := io.ReadAll(r.Body)
	if err == nil {
		err = agentapi.Unmarshal(b, v)
	}
	if err != nil {
		c.t.Errorf("%s %s: %v: %.500s", r.Method, r.URL.Path, err, b)
	}
}

func (c *scripted) update(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *scripted) withTask(r *http.Request, f func(*taskRecord)) {
	id := agentapi.ID(r.PathValue("task"))
	c.update(func() {
		if rec := c.tasks[id]; rec != nil {
			f(rec)
		} else {
			c.t.Errorf("%s %s of an unknown task", r.Method, r.URL.Path)
		}
	})
}

func (c *scripted) receive(_ context.Context, _ *socket.Peer[agentapi.AgentPayload, agentapi.ServicePayload], _ int64, p agentapi.AgentPayload) error {
	c.update(func() {
		switch {
		case p.Ping != nil:
			c.pings++
		case p.Started != nil && c.tasks[p.Started.TaskID] != nil:
			c.tasks[p.Started.TaskID].started++
		case p.Cancelled != nil && c.tasks[p.Cancelled.TaskID] != nil:
			c.tasks[p.Cancelled.TaskID].cancelled++
		default:
			c.t.Errorf("unexpected message of the agent: %+v", p)
		}
	})
	return nil
}

func (c *scripted) receiveLog(_ context.Context, peer *socket.Peer[agentapi.LogMessage, agentapi.ServiceInfo], _ int64, p agentapi.LogMessage) error {
	c.update(func() {
		rec := c.byLog[peer.Identity()]
		switch {
		case p.LogEntries != nil:
			for _, e := range *p.LogEntries {
				if e.I != uint64(len(rec.log)) {
					c.t.Errorf("log entry %d has index %d", len(rec.log), e.I)
				}
				if rec.end != nil {
					c.t.Error("log entry after End")
				}
				rec.log = append(rec.log, e)
			}
		case p.End != nil:
			if p.End.I != uint64(len(rec.log)) || rec.end != nil {
				c.t.Errorf("End is %+v after %d entries", *p.End, len(rec.log))
			}
			rec.end = p.End
		default:
			c.t.Errorf("unexpected log message: %+v", p)
		}
	})
	return nil
}

// await waits until f holds.
func (c *scripted) await(what string, f func() bool) {
	c.t.Helper()
	timeout := time.After(2 * time.Minute)
	for {
		c.mu.Lock()
		ok, changed := f(), c.changed
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			c.mu.Lock()
			defer c.mu.Unlock()
			var state strings.Builder
			for _, r := range c.tasks {
				fmt.Fprintf(&state, "\n%s started %d cancelled %d statuses %v events %d log %d end %v", r.id, r.started, r.cancelled, r.statuses, len(r.events), len(r.log), r.end)
			}
			c.t.Fatalf("never seen: %s%s", what, state.String())
		}
	}
}

// task registers a task before it is sent.
func (c *scripted) task() (rec *taskRecord, logToken string) {
	rec = &taskRecord{id: agentapi.NewID()}
	logToken = "log-secret-" + string(rec.id)
	c.update(func() { c.tasks[rec.id], c.byLog[logToken] = rec, rec })
	return rec, logToken
}

func (c *scripted) send(p agentapi.ServicePayload) {
	c.t.Helper()
	c.await("an agent", func() bool { return c.peer != nil })
	if err := c.peer.Send(p); err != nil {
		c.t.Fatal(err)
	}
}

func (c *scripted) build(drv string, inputs ...string) *taskRecord {
	rec, token := c.task()
	c.send(agentapi.ServicePayload{StartBuild: &agentapi.BuildTask{
		ID: rec.id, DerivationPath: drv, LogToken: token, InputDerivationOutputPaths: inputs,
	}})
	return rec
}

func (c *scripted) cancel(rec *taskRecord) {
	c.send(agentapi.ServicePayload{Cancel: &agentapi.TaskRef{TaskID: rec.id}})
}

// finished waits for the status of a task and the end of its log, and gives the status as text.
func (c *scripted) finished(rec *taskRecord) string {
	c.t.Helper()
	c.await("the end of a task", func() bool { return len(rec.statuses) > 0 && rec.end != nil && rec.started > 0 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if rec.started != 1 || len(rec.statuses) != 1 {
		c.t.Errorf("started %d times, %d statuses", rec.started, len(rec.statuses))
	}
	return statusText(rec.statuses[0])
}

func statusText(s agentapi.TaskStatus) string {
	switch {
	case s.Successful != nil:
		return "Successful"
	case s.Terminated != nil:
		return "Terminated"
	}
	return "Exceptional " + *s.Exceptional
}

// lines are the build log lines of a task.
func (c *scripted) lines(rec *taskRecord) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := []string{}
	for _, e := range rec.log {
		if e.Kind == agentapi.LogResult && e.Type == 101 {
			lines = append(lines, e.Fields[0].Text)
		}
	}
	return lines
}

func (c *scripted) errors(rec *taskRecord) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, e := range rec.log {
		if e.Kind == agentapi.LogMsg && e.Level == 0 {
			b.WriteString(e.Text + "\n")
		}
	}
	return b.String()
}

func (c *scripted) awaitLine(rec *taskRecord, line string) {
	c.t.Helper()
	c.await("the log line "+line, func() bool {
		for _, e := range rec.log {
			if e.Kind == agentapi.LogResult && e.Type == 101 && e.Fields[0].Text == line {
				return true
			}
		}
		return false
	})
}

// wire is a TCP proxy before the coordinator that can be cut.
type wire struct {
	t    testing.TB
	to   string
	l    net.Listener
	wg   sync.WaitGroup
	mu   sync.Mutex
	cut  bool
	open map[net.Conn]bool
}

func newWire(t testing.TB, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, to: strings.TrimPrefix(to, "http://"), l: l, open: map[net.Conn]bool{}}
	w.wg.Go(w.accept)
	t.Cleanup(func() {
		l.Close()
		w.set(true)
		w.wg.Wait()
	})
	return w
}

func (w *wire) url() string { return "http://" + w.l.Addr().String() }

// set cuts all connections and refuses new ones, or lets them through again.
func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	if cut {
		for c := range w.open {
			c.Close()
		}
	}
}

func (w *wire) accept() {
	for {
		in, err := w.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", w.to)
		w.mu.Lock()
		if err != nil || w.cut {
			in.Close()
			if err == nil {
				out.Close()
			}
			w.mu.Unlock()
			continue
		}
		w.open[in], w.open[out] = true, true
		w.mu.Unlock()
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			w.wg.Go(func() {
				_, _ = io.Copy(pair[0], pair[1])
				pair[0].Close()
				pair[1].Close()
				w.mu.Lock()
				defer w.mu.Unlock()
				delete(w.open, pair[0])
			})
		}
	}
}
