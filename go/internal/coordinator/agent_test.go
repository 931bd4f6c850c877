package coordinator_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"hercules/internal/coordinator"
	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// agent is a scripted agent that speaks the protocol as the specification words it and refuses what agents refuse:
// any status but 200, a JSON result without its content type, frames out of order, a message that does not decode.
type agent struct {
	t       *testing.T
	base    string
	http    *http.Client
	info    agentapi.AgentInfo
	token   string
	start   agentapi.StartInfo
	service agentapi.ServiceInfo

	// of the agent socket: numbers as in section 3.4
	mu       sync.Mutex
	ws       *websocket.Conn
	in       chan agentapi.ServicePayload
	highest  int64            // accepted
	numbers  map[string]int64 // by task id, for checks of resending
	next     int64
	unacked  []agentapi.FrameMsg[agentapi.AgentPayload]
	acked    int64
	ackedNow chan struct{}
	mute     bool // do not acknowledge
	done     chan struct{}
}

const limit = 20 * time.Second

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func startCoordinator(t *testing.T, cfg coordinator.Config) *coordinator.Coordinator {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	c, err := coordinator.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("closing the coordinator: %v", err)
		}
	})
	return c
}

func agentInfo(slots int64) agentapi.AgentInfo {
	return agentapi.AgentInfo{
		Hostname: "builder-7", AgentVersion: "0.10.8", NixVersion: "2.8.0",
		Platforms: agentapi.List[string]{"x86_64-linux"}, SystemFeatures: agentapi.List[string]{"kvm"}, ConcurrentTasks: slots,
	}
}

// join creates a session and connects.
func join(t *testing.T, c *coordinator.Coordinator, slots int64) *agent {
	t.Helper()
	a := newAgent(t, c.URL(), agentInfo(slots))
	a.token = a.createSession(c.JoinToken())
	if n := a.connect(nil); n != -1 {
		t.Fatalf("ack of the handshake: got %d, want -1 for a new start", n)
	}
	return a
}

func newAgent(t *testing.T, base string, info agentapi.AgentInfo) *agent {
	a := &agent{
		t: t, base: base, info: info, http: &http.Client{Transport: &http.Transport{}, Timeout: limit},
		start:   agentapi.StartInfo{ID: agentapi.NewID(), StartTime: time.Now().UTC()},
		highest: -1, acked: -1, in: make(chan agentapi.ServicePayload, 10000), ackedNow: make(chan struct{}, 1), numbers: map[string]int64{},
	}
	t.Cleanup(func() {
		a.disconnect()
		a.http.CloseIdleConnections()
	})
	a.get("/api/v1/agent/service-info", "", &a.service)
	if a.service.Version != (agentapi.Version{2, 0}) {
		t.Fatalf("version %v, want 2.0", a.service.Version)
	}
	return a
}

// restarted is the next process of the same agent.
func (a *agent) restarted() *agent {
	a.disconnect()
	b := newAgent(a.t, a.base, a.info)
	b.token = a.token
	return b
}

func (a *agent) createSession(joinToken string) string {
	var token string
	if err := agentapi.Unmarshal(a.must("POST", "/api/v1/agent/session", joinToken, &agentapi.CreateAgentSession{AgentInfo: a.info}, true), &token); err != nil {
		a.t.Fatalf("session: %v", err)
	}
	return token
}

// request does an HTTP request the way agents do.
func (a *agent) request(method, path, token string, body any) (*http.Response, []byte) {
	a.t.Helper()
	var r io.Reader
	if body != nil {
		b, err := agentapi.Marshal(body)
		if err != nil {
			a.t.Fatal(err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(testContext(a.t), method, a.base+path, r)
	if err != nil {
		a.t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json;charset=utf-8")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp, b
}

func (a *agent) must(method, path, token string, body any, result bool) []byte {
	a.t.Helper()
	resp, b := a.request(method, path, token, body)
	if resp.StatusCode != 200 {
		a.t.Fatalf("%s %s: %s %s", method, path, resp.Status, b)
	}
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); result && t != "application/json" {
		a.t.Fatalf("%s %s: content type %q", method, path, resp.Header.Get("Content-Type"))
	}
	return b
}

func (a *agent) get(path, token string, into any) {
	a.t.Helper()
	if err := agentapi.Unmarshal(a.must("GET", path, token, nil, true), into); err != nil {
		a.t.Fatalf("%s: %v", path, err)
	}
}

func (a *agent) post(path string, body any) {
	a.t.Helper()
	a.must("POST", "/api/v1/"+path, a.token, body, false)
}

func (a *agent) status(task agentapi.ID, s agentapi.TaskStatus) { a.post("tasks/"+string(task), &s) }

func (a *agent) events(task agentapi.ID, events ...agentapi.EvaluateEvent) {
	a.t.Helper()
	a.post("tasks/"+string(task)+"/eval", ptr(agentapi.List[agentapi.EvaluateEvent](events)))
}

func (a *agent) evalBuild(drv string) *agentapi.EvalBuild {
	var b *agentapi.EvalBuild
	a.get("/api/v1/agent/eval-build/"+url.PathEscape(drv), a.token, &b)
	return b
}

func ptr[T any](v T) *T { return &v }

var (
	successful = agentapi.TaskStatus{Successful: &agentapi.Unit{}}
	terminated = agentapi.TaskStatus{Terminated: &agentapi.Unit{}}
)

func exceptional(s string) agentapi.TaskStatus { return agentapi.TaskStatus{Exceptional: &s} }

func (a *agent) dial(ctx context.Context, base, path, token string) *websocket.Conn {
	a.t.Helper()
	ws, resp, err := websocket.Dial(ctx, strings.TrimRight(base, "/")+path, &websocket.DialOptions{
		HTTPHeader: http.Header{"Authorization": {"Bearer " + token}}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		a.t.Fatalf("%s: %v (%v)", path, err, resp)
	}
	ws.SetReadLimit(1 << 28)
	return ws
}

func readJSON(ctx context.Context, ws *websocket.Conn, into any) error {
	_, b, err := ws.Read(ctx)
	if err != nil {
		return err
	}
	return agentapi.Unmarshal(b, into)
}

func writeJSON(ctx context.Context, ws *websocket.Conn, v any) error {
	b, err := agentapi.Marshal(v)
	if err != nil {
		return err
	}
	return ws.Write(ctx, websocket.MessageBinary, b)
}

// connect opens the agent socket and returns the number in the handshake's ack.
func (a *agent) connect(inProgress []agentapi.ID) int64 {
	a.t.Helper()
	ctx := testContext(a.t)
	ws := a.dial(ctx, a.service.AgentSocketBaseURL, "/api/v1/agent-socket", a.token)
	var f agentapi.Frame[agentapi.ServicePayload]
	if err := readJSON(ctx, ws, &f); err != nil || f.Oob == nil || f.Oob.O.ServiceInfo == nil {
		a.t.Fatalf("greeting: %+v, %v", f, err)
	}
	hello := agentapi.Frame[agentapi.AgentPayload]{Oob: &agentapi.FrameOob[agentapi.AgentPayload]{O: agentapi.AgentPayload{
		Hello: &agentapi.Hello{AgentInfo: a.info, StartInfo: a.start, TasksInProgress: inProgress},
	}}}
	if err := writeJSON(ctx, ws, &hello); err != nil {
		a.t.Fatal(err)
	}
	f = agentapi.Frame[agentapi.ServicePayload]{}
	if err := readJSON(ctx, ws, &f); err != nil || f.Ack == nil {
		a.t.Fatalf("ack of the handshake: %+v, %v", f, err)
	}
	a.mu.Lock()
	a.ws, a.done = ws, make(chan struct{})
	a.acknowledged(f.Ack.N)
	again := a.unacked
	a.mu.Unlock()
	for _, m := range again {
		if err := writeJSON(ctx, ws, &agentapi.Frame[agentapi.AgentPayload]{Msg: &m}); err != nil {
			a.t.Fatal(err)
		}
	}
	go a.read(ws, a.done)
	a.send(agentapi.AgentPayload{Ping: &agentapi.Unit{}})
	return f.Ack.N
}

// read delivers each message once and acknowledges all.
func (a *agent) read(ws *websocket.Conn, done chan struct{}) {
	defer close(done)
	for {
		f := agentapi.Frame[agentapi.ServicePayload]{}
		if err := readJSON(context.Background(), ws, &f); err != nil {
			return
		}
		a.mu.Lock()
		switch {
		case f.Ack != nil:
			a.acknowledged(f.Ack.N)
		case f.Msg != nil:
			if f.Msg.N > a.highest {
				a.highest = f.Msg.N
				a.in <- f.Msg.P
			}
			if !a.mute {
				_ = writeJSON(context.Background(), ws, &agentapi.Frame[agentapi.AgentPayload]{Ack: &agentapi.FrameAck{N: f.Msg.N}})
			}
		default:
			a.t.Errorf("unexpected frame %+v", f)
		}
		a.mu.Unlock()
	}
}

func (a *agent) acknowledged(n int64) {
	a.acked = max(a.acked, n)
	for len(a.unacked) > 0 && a.unacked[0].N <= a.acked {
		a.unacked = a.unacked[1:]
	}
	select {
	case a.ackedNow <- struct{}{}:
	default:
	}
}

func (a *agent) disconnect() {
	a.mu.Lock()
	ws, done := a.ws, a.done
	a.ws = nil
	a.mu.Unlock()
	if ws != nil {
		_ = ws.CloseNow()
		<-done
	}
}

func (a *agent) send(p agentapi.AgentPayload) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	m := agentapi.FrameMsg[agentapi.AgentPayload]{N: a.next, P: p}
	a.next++
	a.unacked = append(a.unacked, m)
	if a.ws != nil {
		if err := writeJSON(testContext(a.t), a.ws, &agentapi.Frame[agentapi.AgentPayload]{Msg: &m}); err != nil {
			a.t.Fatal(err)
		}
	}
}

// settled waits until all messages are acknowledged.
func (a *agent) settled() {
	a.t.Helper()
	timeout := time.After(limit)
	for {
		a.mu.Lock()
		n := len(a.unacked)
		a.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-a.ackedNow:
		case <-timeout:
			a.t.Fatal("messages are not acknowledged")
		}
	}
}

func (a *agent) started(task agentapi.ID) {
	a.send(agentapi.AgentPayload{Started: &agentapi.TaskRef{TaskID: task}})
}

// receive returns the next message.
func (a *agent) receive() agentapi.ServicePayload {
	a.t.Helper()
	select {
	case p := <-a.in:
		return p
	case <-time.After(limit):
		a.t.Fatal("no message came")
		panic("unreachable")
	}
}

func (a *agent) evaluation() *agentapi.EvaluateTask {
	a.t.Helper()
	p := a.receive()
	if p.StartEvaluation == nil {
		a.t.Fatalf("got %+v, want an evaluation", p)
	}
	return p.StartEvaluation
}

func (a *agent) build() *agentapi.BuildTask {
	a.t.Helper()
	p := a.receive()
	if p.StartBuild == nil {
		a.t.Fatalf("got %+v, want a build", p)
	}
	return p.StartBuild
}

// quiet says that nothing has been sent that was not received. A request that goes through the coordinator's lock
// before makes it certain.
func (a *agent) quiet() {
	a.t.Helper()
	a.evalBuild("/nix/store/nothing.drv")
	select {
	case p := <-a.in:
		a.t.Fatalf("unexpected message %+v", p)
	default:
	}
}

// logSocket is one connection of a task's log.
type logSocket struct {
	a  *agent
	ws *websocket.Conn
	// last is the number in the handshake's ack.
	last int64
	next int64
}

func (a *agent) openLog(token string) *logSocket {
	a.t.Helper()
	ctx := testContext(a.t)
	ws := a.dial(ctx, a.service.BulkSocketBaseURL, "/api/v1/logs/build/socket", token)
	a.t.Cleanup(func() { _ = ws.CloseNow() })
	// Bare on this socket (section 3.3).
	var greeting struct {
		Tag string `json:"tag"`
		O   struct {
			Version [2]int `json:"version"`
		} `json:"o"`
	}
	_, b, err := ws.Read(ctx)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := json.Unmarshal(b, &greeting); err != nil || greeting.Tag != "Oob" || greeting.O.Version != [2]int{2, 0} {
		a.t.Fatalf("greeting of the log socket: %s, %v", b, err)
	}
	hello := agentapi.Frame[agentapi.LogMessage]{Oob: &agentapi.FrameOob[agentapi.LogMessage]{O: agentapi.LogMessage{
		Hello: &agentapi.LogHello{StoreProtocolVersion: 294, ClientProtocolVersion: 294},
	}}}
	if err := writeJSON(ctx, ws, &hello); err != nil {
		a.t.Fatal(err)
	}
	var f agentapi.Frame[agentapi.ServiceInfo]
	if err := readJSON(ctx, ws, &f); err != nil || f.Ack == nil {
		a.t.Fatalf("ack of the log's handshake: %+v, %v", f, err)
	}
	return &logSocket{a: a, ws: ws, last: f.Ack.N, next: f.Ack.N + 1}
}

// send sends a message and waits for its ack.
func (l *logSocket) send(m agentapi.LogMessage) {
	l.a.t.Helper()
	ctx := testContext(l.a.t)
	n := l.next
	l.next++
	f := agentapi.Frame[agentapi.LogMessage]{Msg: &agentapi.FrameMsg[agentapi.LogMessage]{N: n, P: m}}
	if err := writeJSON(ctx, l.ws, &f); err != nil {
		l.a.t.Fatal(err)
	}
	for {
		var back agentapi.Frame[agentapi.ServiceInfo]
		if err := readJSON(ctx, l.ws, &back); err != nil || back.Ack == nil {
			l.a.t.Fatalf("ack of a log message: %+v, %v", back, err)
		}
		if back.Ack.N >= n {
			return
		}
	}
}

func (l *logSocket) entries(e ...agentapi.LogEntry) {
	l.send(agentapi.LogMessage{LogEntries: ptr(agentapi.List[agentapi.LogEntry](e))})
}

func (l *logSocket) end(i uint64) { l.send(agentapi.LogMessage{End: &agentapi.LogEnd{I: i}}) }

func buildStart(i uint64, drv string) agentapi.LogEntry {
	return agentapi.LogEntry{Kind: agentapi.LogStart, I: i, Act: 9288674231451649, Level: 3, Type: 105, Text: "building '" + drv + "'", Fields: []agentapi.LogField{
		agentapi.TextField(drv), agentapi.TextField(""), agentapi.IntField(1), agentapi.IntField(1),
	}}
}

func buildLine(i uint64, text string) agentapi.LogEntry {
	return agentapi.LogEntry{Kind: agentapi.LogResult, I: i, Act: 9288674231451649, Type: 101, Fields: []agentapi.LogField{agentapi.TextField(text)}}
}

func phase(i uint64, name string) agentapi.LogEntry {
	return agentapi.LogEntry{Kind: agentapi.LogResult, I: i, Act: 9288674231451649, Type: 104, Fields: []agentapi.LogField{agentapi.TextField(name)}}
}

// Documents.

func drv(name string) string { return "/nix/store/00000000000000000000000000000000-" + name + ".drv" }

func out(name string) string { return "/nix/store/11111111111111111111111111111111-" + name }

func info(name string, inputs ...string) agentapi.EvaluateEvent {
	in := agentapi.Map[string, agentapi.List[string]]{}
	for _, i := range inputs {
		in[drv(i)] = agentapi.List[string]{"out"}
	}
	return agentapi.EvaluateEvent{DerivationInfo: &agentapi.DerivationInfo{
		DerivationPath: drv(name), Platform: "x86_64-linux", InputDerivations: in,
		Outputs: agentapi.Map[string, agentapi.DerivationInfoOutput]{"out": {Path: ptr(out(name))}},
	}}
}

func attribute(path, name string, typ agentapi.AttributeType) agentapi.EvaluateEvent {
	return agentapi.EvaluateEvent{Attribute: &agentapi.AttributeEvent{
		ExpressionPath: strings.Split(path, "."), DerivationPath: drv(name), Typ: typ,
	}}
}

func request(name string, force bool) agentapi.EvaluateEvent {
	return agentapi.EvaluateEvent{BuildRequest: &agentapi.BuildRequest{DerivationPath: drv(name), ForceRebuild: force}}
}

func required(i int64, name string) agentapi.EvaluateEvent {
	return agentapi.EvaluateEvent{BuildRequired: &agentapi.BuildRequired{Index: i, DerivationPath: drv(name), OutputName: "out"}}
}

// succeed does a build the way of section 1.3.
func (a *agent) succeed(b *agentapi.BuildTask) {
	a.t.Helper()
	name := strings.TrimSuffix(b.DerivationPath[44:], ".drv")
	a.started(b.ID)
	a.post("tasks/"+string(b.ID)+"/build", ptr(agentapi.List[agentapi.BuildEvent]{{OutputInfo: &agentapi.OutputInfo{
		Deriver: b.DerivationPath, Name: "out", Path: out(name), Hash: "sha256:axc8g524sr6qipjrhzgydzv4cc4aszi22jb79a2zvqkcir8h0k4y", Size: 1,
		References: &agentapi.List[string]{},
	}}}))
	a.post("tasks/"+string(b.ID)+"/build", ptr(agentapi.List[agentapi.BuildEvent]{{Done: ptr(true)}}))
	a.status(b.ID, successful)
}

func archive(content string) coordinator.Archive {
	return func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, content)
		return err
	}
}

func legacyJob() coordinator.Job {
	return coordinator.Job{Name: "widgets", Source: coordinator.Source{Ref: "refs/heads/main", Rev: strings.Repeat("a", 40), Archive: archive("a tarball")}}
}

func submit(t *testing.T, c *coordinator.Coordinator, j coordinator.Job) string {
	t.Helper()
	id, err := c.Submit(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func wait(t *testing.T, c *coordinator.Coordinator, job string) *coordinator.Result {
	t.Helper()
	r, err := c.Wait(testContext(t), job)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// collect gathers events until the job is over.
func collect(t *testing.T, c *coordinator.Coordinator) func() []event.Event {
	t.Helper()
	events, stop := c.Subscribe(t.Context())
	return func() []event.Event {
		defer stop()
		var got []event.Event
		timeout := time.After(limit)
		for {
			select {
			case e := <-events:
				got = append(got, e)
				if _, ok := e.Body.(event.JobFinished); ok {
					return got
				}
			case <-timeout:
				t.Fatalf("the job does not end; events so far: %s", names(got))
			}
		}
	}
}

func names(events []event.Event) string {
	var s []string
	for _, e := range events {
		s = append(s, fmt.Sprintf("%s %+v", e.Body.EventName(), e.Body))
	}
	return strings.Join(s, "\n")
}
