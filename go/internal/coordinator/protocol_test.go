package coordinator_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"hercules/internal/coordinator"
	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// What agents are answered, by status. Section 2.1 and 2.2.
func TestHTTP(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{})
	a := join(t, c, 1)
	submit(t, c, legacyJob())
	ev := a.evaluation()
	id, unknown := string(ev.ID), string(agentapi.NewID())
	const ok = `{"tag":"Successful","contents":[]}`
	for _, test := range []struct {
		name, method, path, token, contentType, body string
		status                                       int
		want                                         string
	}{
		{name: "service info", method: "GET", path: "agent/service-info", status: 200, want: `"version":[2,0]`},
		{name: "bare question mark", method: "GET", path: "agent/service-info?", status: 200, want: `"agentSocketBaseURL":"http://`},
		{name: "session without token", method: "POST", path: "agent/session", body: "{}", status: 401},
		{name: "session with a session token", method: "POST", path: "agent/session", token: a.token, body: "{}", status: 401},
		{name: "session with a bad body", method: "POST", path: "agent/session", token: c.JoinToken(), body: "{}", status: 400, want: `"errorTags":[]`},
		{name: "session in the old form", method: "POST", path: "agent/session", token: c.JoinToken(), body: vector(t, "create-agent-session-v1-deprecated"), status: 400},
		{name: "session", method: "POST", path: "agent/session", token: c.JoinToken(), body: vector(t, "create-agent-session"), status: 200, want: `"ey`},
		{name: "session of an old agent", method: "POST", path: "agent/session", token: c.JoinToken(), body: `{"agentInfo":` + vector(t, "lenient/agent-info-defaults.in") + `}`, status: 200, want: `"ey`},
		{name: "no content type", method: "POST", path: "tasks/" + id, token: a.token, contentType: "-", body: ok, status: 415},
		{name: "other content type", method: "POST", path: "tasks/" + id, token: a.token, contentType: "text/plain", body: ok, status: 415},
		{name: "no token", method: "POST", path: "tasks/" + id, body: ok, status: 401},
		{name: "join token", method: "POST", path: "tasks/" + id, token: c.JoinToken(), body: ok, status: 401},
		{name: "wrong token", method: "POST", path: "tasks/" + id, token: a.token + "x", body: ok, status: 401},
		{name: "unknown task", method: "POST", path: "tasks/" + unknown, token: a.token, body: ok, status: 200},
		{name: "no task id at all", method: "POST", path: "tasks/nonsense", token: a.token, body: ok, status: 200},
		{name: "events of an unknown task", method: "POST", path: "tasks/" + unknown + "/eval", token: a.token, body: `[]`, status: 200},
		{name: "build events of an evaluation", method: "POST", path: "tasks/" + id + "/build", token: a.token, body: `[{"tag":"Done","contents":true}]`, status: 200},
		{name: "events", method: "POST", path: "tasks/" + id + "/eval", token: a.token, body: vector(t, "evaluate-events-batch"), status: 200},
		{name: "old events", method: "POST", path: "tasks/" + id + "/eval", token: a.token, body: "[" + vector(t, "lenient/evaluate-event-derivation-info-v1.in") + "," + vector(t, "lenient/evaluate-event-attribute-no-typ.in") + "]", status: 200},
		{name: "event of an unknown kind", method: "POST", path: "tasks/" + id + "/eval", token: a.token, body: `[{"tag":"Nope","contents":{}}]`, status: 400},
		{name: "bad status", method: "POST", path: "tasks/" + id, token: a.token, body: `{"tag":"Exceptional"}`, status: 400},
		{name: "historic log", method: "POST", path: "tasks/log", token: a.token, body: `[]`, status: 404},
		{name: "not planned", method: "GET", path: "agent/eval-build/%2Fnix%2Fstore%2Fx.drv", token: a.token, status: 200, want: "null"},
		{name: "derivation not in one segment", method: "GET", path: "agent/eval-build/nix/store/x.drv", token: a.token, status: 404},
		{name: "goodbye of nobody", method: "POST", path: "agent/goodbye", token: a.token, body: vector(t, "start-info"), status: 200},
		{name: "agent socket without upgrade", method: "GET", path: "agent-socket", token: a.token, status: 426},
		{name: "agent socket with the join token", method: "GET", path: "agent-socket", token: c.JoinToken(), status: 401},
		{name: "log socket without token", method: "GET", path: "logs/build/socket", status: 401},
		{name: "log socket with a session token", method: "GET", path: "logs/build/socket", token: a.token, status: 401},
		{name: "no such source", method: "GET", path: "../../sources/" + strings.Repeat("a", 26) + ".tar.gz", status: 404},
		{name: "nothing there", method: "GET", path: "nothing", token: a.token, status: 404},
		{name: "status", method: "POST", path: "tasks/" + id, token: a.token, contentType: "application/json; charset=UTF-8", body: ok, status: 200},
		{name: "status again", method: "POST", path: "tasks/" + id, token: a.token, body: vector(t, "task-status-terminated"), status: 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			url := a.base + "/api/v1/" + test.path
			if rest, ok := strings.CutPrefix(test.path, "../.."); ok {
				url = a.base + rest
			}
			req, err := http.NewRequestWithContext(testContext(t), test.method, url, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			switch test.contentType {
			case "":
				req.Header.Set("Content-Type", "application/json;charset=utf-8")
			case "-":
			default:
				req.Header.Set("Content-Type", test.contentType)
			}
			if test.token != "" {
				req.Header.Set("Authorization", "Bearer "+test.token)
			}
			resp, err := a.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			var b strings.Builder
			if _, err := fmt.Fprint(&b, readAll(t, resp)); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != test.status || !strings.Contains(b.String(), test.want) {
				t.Errorf("got %d %s, want %d %s", resp.StatusCode, b.String(), test.status, test.want)
			}
		})
	}
}

func readAll(t *testing.T, resp *http.Response) string {
	t.Helper()
	var b strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			return b.String()
		}
	}
}

// vector is a document of the protocol specification.
func vector(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "wire", "agentapi", "testdata", "vectors", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Agents read the claims with the standard alphabet and drop what is not in it (section 7.2).
func TestTokens(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{})
	a := newAgent(t, c.URL(), agentInfo(1))
	claim := func(token, name string) string {
		payload := strings.Split(token, ".")[1]
		b, err := base64.RawStdEncoding.DecodeString(payload)
		if err != nil {
			t.Fatalf("payload %s: %v", payload, err)
		}
		var claims map[string]string
		if err := json.Unmarshal(b, &claims); err != nil {
			t.Fatal(err)
		}
		return claims[name]
	}
	for range 50 {
		joined := a.createSession(c.JoinToken())
		if id, ok := strings.CutPrefix(claim(c.JoinToken(), "sub"), "t$"); !ok || claim(joined, "parent") != id {
			t.Fatalf("claims of %s and %s do not belong together", c.JoinToken(), joined)
		}
	}
}

// The first status counts, whenever it comes and how often (gotchas 16 and 23).
func TestStatus(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{LogGrace: time.Millisecond})
	a := join(t, c, 3)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	a.events(ev.ID, info("app"), attribute("app", "app", agentapi.Regular), request("app", false), info("bad"), attribute("bad", "bad", agentapi.MustFail), request("bad", false))
	b, bad := a.build(), a.build()
	if b.DerivationPath != drv("app") {
		b, bad = bad, b
	}
	a.status(b.ID, successful) // before Started
	a.status(b.ID, terminated)
	a.started(b.ID)
	a.status(bad.ID, terminated)
	a.status(bad.ID, successful)
	a.settled()
	a.status(ev.ID, successful)
	a.events(ev.ID, attribute("late", "late", agentapi.Regular))
	a.status(ev.ID, exceptional("late"))
	r := wait(t, c, job)
	if r.Status != event.Succeeded || r.Counts.Attributes != 2 {
		t.Errorf("result: %+v", r)
	}
}

// What broke for reasons of its own is tried again, with a new task id, and not for ever.
func TestRetry(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{LogGrace: time.Millisecond})
	a := join(t, c, 2)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	a.events(ev.ID, info("app"), attribute("app", "app", agentapi.Regular), request("app", false))
	a.status(ev.ID, successful)
	ids := map[agentapi.ID]bool{}
	tokens := map[string]bool{}
	var attempt agentapi.ID
	for range 3 {
		b := a.build()
		ids[b.ID], tokens[b.LogToken] = true, true
		s := a.evalBuild(drv("app"))
		if attempt != "" && s.Attempt != attempt {
			t.Errorf("another attempt: %+v", s)
		}
		attempt = s.Attempt
		a.status(b.ID, exceptional("lost worker"))
	}
	r := wait(t, c, job)
	if len(ids) != 3 || len(tokens) != 3 || r.Status != event.Failed || r.Attributes[0].Outcome != event.BuildError || r.Failures[0].Reason != "lost worker" {
		t.Errorf("ids %v, result %+v", ids, r)
	}
}

// Section 3.4: what was not acknowledged comes again with the same number, what was is not forgotten.
func TestReconnect(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{LogGrace: time.Millisecond})
	a := join(t, c, 2)
	a.settled()
	a.mu.Lock()
	a.mute = true
	a.mu.Unlock()
	job := submit(t, c, legacyJob())
	ev := a.evaluation() // accepted, and the ack is lost
	a.mu.Lock()
	highest := a.highest
	a.mu.Unlock()
	a.disconnect()
	a.started(ev.ID) // waits for the connection
	a.mu.Lock()
	a.mute = false
	a.mu.Unlock()
	if n := a.connect([]agentapi.ID{ev.ID}); n != 0 {
		t.Errorf("ack of the handshake: got %d, want 0, the first ping", n)
	}
	a.settled()
	a.events(ev.ID, info("app"), attribute("app", "app", agentapi.Regular), request("app", false))
	b := a.build() // not the evaluation again: it had its number
	a.mu.Lock()
	if a.highest <= highest {
		t.Errorf("number %d after %d", a.highest, highest)
	}
	a.mu.Unlock()
	// A second connection of the same start takes over from the first, which looks alive.
	a.mu.Lock()
	old, oldDone := a.ws, a.done
	a.mu.Unlock()
	a.connect([]agentapi.ID{b.ID, ev.ID})
	<-oldDone // the coordinator has dropped it
	_ = old.CloseNow()
	a.succeed(b)
	a.status(ev.ID, successful)
	if r := wait(t, c, job); r.Status != event.Succeeded {
		t.Errorf("result: %+v", r)
	}
}

// The same session with another start: the process before is gone, and what it did is done again.
func TestRestartedAgent(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{LogGrace: time.Millisecond})
	a := join(t, c, 2)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	a.events(ev.ID, info("app"), attribute("gone", "app", agentapi.Regular), request("app", false))
	b := a.build()
	n := a.restarted()
	if ack := n.connect(nil); ack != -1 {
		t.Errorf("ack %d for a new start, want -1", ack)
	}
	ev2 := n.evaluation()
	b2 := n.build()
	if ev2.ID == ev.ID || b2.ID == b.ID || ev2.LogToken == ev.LogToken || b2.DerivationPath != b.DerivationPath {
		t.Errorf("tasks %v and %v after %v and %v", ev2.ID, b2.ID, ev.ID, b.ID)
	}
	// The old process turns out to live a little longer; nothing that it says counts.
	n.events(ev.ID, attribute("ghost", "app", agentapi.Regular))
	n.status(b.ID, terminated)
	n.events(ev2.ID, info("app"), attribute("app", "app", agentapi.Regular), request("app", false))
	n.status(ev2.ID, successful)
	n.succeed(b2)
	r := wait(t, c, job)
	if r.Status != event.Succeeded || len(r.Attributes) != 1 || r.Attributes[0].Path[0] != "app" {
		t.Errorf("result: %+v", r)
	}
}

// An agent that stays away is given up; when it comes back all the same it is told to stop.
func TestLostAgent(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{LostAfter: 20 * time.Millisecond, LogGrace: time.Millisecond})
	a := join(t, c, 1)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	b := join(t, c, 1)
	a.disconnect()
	ev2 := b.evaluation()
	if ev2.ID == ev.ID {
		t.Error("the same task id twice")
	}
	a.connect([]agentapi.ID{ev.ID})
	if p := a.receive(); p.Cancel == nil || p.Cancel.TaskID != ev.ID {
		t.Errorf("got %+v, want the task to be cancelled", p)
	}
	a.status(ev.ID, exceptional("thread killed"))
	b.status(ev2.ID, successful)
	if r := wait(t, c, job); r.Status != event.Succeeded {
		t.Errorf("result: %+v", r)
	}
}

// Section 4.2: a task of which the agent says nothing when it comes back is lost, one that it mentions is not.
func TestForgottenTask(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{Grace: time.Millisecond, LogGrace: time.Millisecond})
	a := join(t, c, 2)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	a.events(ev.ID, info("app"), attribute("app", "app", agentapi.Regular), request("app", false))
	b := a.build()
	a.settled()
	a.disconnect()
	a.connect([]agentapi.ID{ev.ID})
	b2 := a.build()
	if b2.ID == b.ID || b2.DerivationPath != b.DerivationPath {
		t.Errorf("got %+v after %+v", b2, b)
	}
	a.status(b.ID, terminated) // it comes too late
	a.succeed(b2)
	a.status(ev.ID, successful)
	if r := wait(t, c, job); r.Status != event.Succeeded {
		t.Errorf("result: %+v", r)
	}
}

func TestGoodbye(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{LogGrace: time.Millisecond})
	events := collect(t, c)
	a := join(t, c, 1)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	b := join(t, c, 1)
	// Not with the session of another agent.
	b.post("agent/goodbye", &a.start)
	b.quiet()
	a.post("agent/goodbye", &a.start)
	a.post("agent/goodbye", &a.start)
	ev2 := b.evaluation()
	if ev2.ID == ev.ID {
		t.Error("the same task id twice")
	}
	b.status(ev2.ID, successful)
	wait(t, c, job)
	gone := 0
	for _, e := range events() {
		if g, ok := e.Body.(event.AgentGone); ok && !g.Lost {
			gone++
		}
	}
	if gone != 1 {
		t.Errorf("told %d times that the agent left", gone)
	}
}

// Gotcha 34: a task is the business of the session that it was given to.
func TestForeignTask(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{LogGrace: time.Millisecond})
	a := join(t, c, 1)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	b := join(t, c, 1)
	b.events(ev.ID, attribute("evil", "evil", agentapi.Regular))
	b.status(ev.ID, exceptional("evil"))
	b.started(ev.ID)
	b.settled()
	a.status(ev.ID, successful)
	if r := wait(t, c, job); r.Status != event.Succeeded || len(r.Attributes) != 0 {
		t.Errorf("result: %+v", r)
	}
	// Nor is the start of another session's agent.
	thief := newAgent(t, c.URL(), agentInfo(1))
	thief.token = thief.createSession(c.JoinToken())
	ctx := testContext(t)
	ws := thief.dial(ctx, thief.base, "/api/v1/agent-socket", thief.token)
	defer func() { _ = ws.CloseNow() }()
	if _, _, err := ws.Read(ctx); err != nil {
		t.Fatal(err)
	}
	hello := agentapi.Frame[agentapi.AgentPayload]{Oob: &agentapi.FrameOob[agentapi.AgentPayload]{O: agentapi.AgentPayload{
		Hello: &agentapi.Hello{AgentInfo: a.info, StartInfo: a.start},
	}}}
	if err := writeJSON(ctx, ws, &hello); err != nil {
		t.Fatal(err)
	}
	var f agentapi.Frame[agentapi.ServicePayload]
	if err := readJSON(ctx, ws, &f); err != nil || f.Exception == nil {
		t.Errorf("got %+v, %v; want an exception", f, err)
	}
}

// Frames as the existing agent writes them, byte for byte from the vectors, and frames that no agent writes.
func TestFrames(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		frames []string
		text   bool
		want   []string
		closed bool
	}{
		{name: "vectors", frames: []string{"frame-oob-hello", "frame-msg-ping", "frame-msg-cancelled", "frame-ack"}, want: []string{`{"tag":"Ack","n":-1}`, `{"tag":"Ack","n":`}},
		{name: "text frames", text: true, frames: []string{"frame-oob-hello", "frame-msg-ping"}, want: []string{`{"tag":"Ack","n":-1}`, `{"tag":"Ack","n":`}},
		{name: "greeting of the log socket", frames: []string{"log-frame-oob-hello"}, closed: true},
		{name: "no hello", frames: []string{"frame-msg-ping"}, closed: true},
		{name: "unknown tag", frames: []string{"frame-oob-hello", "reject/frame-unknown-tag"}, want: []string{`{"tag":"Ack","n":-1}`}, closed: true},
		{name: "not JSON", frames: []string{"frame-oob-hello", "INDEX.tsv"}, want: []string{`{"tag":"Ack","n":-1}`}, closed: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := startCoordinator(t, coordinator.Config{})
			a := newAgent(t, c.URL(), agentInfo(1))
			a.token = a.createSession(c.JoinToken())
			ctx := testContext(t)
			ws := a.dial(ctx, a.base, "/api/v1/agent-socket", a.token)
			defer func() { _ = ws.CloseNow() }()
			if _, _, err := ws.Read(ctx); err != nil {
				t.Fatal(err)
			}
			typ := websocket.MessageBinary
			if test.text {
				typ = websocket.MessageText
			}
			for _, name := range test.frames {
				if name == "INDEX.tsv" {
					name = "../vectors/INDEX.tsv"
					b, err := os.ReadFile(filepath.Join("..", "wire", "agentapi", "testdata", "vectors", "INDEX.tsv"))
					if err != nil {
						t.Fatal(err)
					}
					if err := ws.Write(ctx, typ, b); err != nil {
						t.Fatal(err)
					}
					continue
				}
				if err := ws.Write(ctx, typ, []byte(vector(t, name))); err != nil {
					t.Fatal(err)
				}
			}
			got := []string{}
			for len(got) < len(test.want) {
				_, b, err := ws.Read(ctx)
				if err != nil {
					t.Fatalf("after %q: %v", got, err)
				}
				if !strings.HasPrefix(string(b), `{"tag":"Msg"`) { // the task of the hello is not known here, so it is cancelled
					got = append(got, string(b))
				}
			}
			for i := range test.want {
				if !strings.HasPrefix(got[i], test.want[i]) {
					t.Errorf("got %s, want %s", got[i], test.want[i])
				}
			}
			if test.closed {
				for range 2 { // perhaps an Exception first
					if _, _, err := ws.Read(ctx); err != nil {
						if context.Cause(ctx) != nil {
							t.Error("the connection stays open")
						}
						return
					}
				}
				t.Error("the connection stays open")
			}
		})
	}
}

// Section 6.1: a log can be resumed, entries and end come after the status, and nothing is there twice.
func TestLogSocket(t *testing.T) {
	t.Parallel()
	c := startCoordinator(t, coordinator.Config{})
	a := join(t, c, 2)
	job := submit(t, c, legacyJob())
	ev := a.evaluation()
	a.events(ev.ID, info("app"), attribute("app", "app", agentapi.Regular), request("app", false))
	a.status(ev.ID, successful)
	a.openLog(ev.LogToken).end(0)
	b := a.build()
	l := a.openLog(b.LogToken)
	if l.last != -1 {
		t.Errorf("ack %d for a new log, want -1", l.last)
	}
	l.entries()
	l.entries(buildLine(0, "one"), buildLine(1, "two\r"))
	r, err := c.OpenLog(t.Context(), b.DerivationPath, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	follow := make(chan string)
	go func() {
		var s strings.Builder
		buf := make([]byte, 3)
		for {
			n, err := r.Read(buf)
			s.Write(buf[:n])
			if err != nil {
				follow <- s.String()
				return
			}
		}
	}()
	_ = l.ws.CloseNow()
	l2 := a.openLog(b.LogToken)
	if l2.last != 1 {
		t.Errorf("ack %d when resumed, want 1", l2.last)
	}
	l2.next = 1 // the ack was lost on the agent's side: again
	l2.entries(buildLine(0, "one"), buildLine(1, "two"))
	l2.entries(buildLine(2, "three"))
	a.succeed(b)
	l2.entries(buildLine(3, "\x1b[31mfour\x1b[0m"))
	l2.entries()
	l2.end(4)
	l2.entries() // keep-alives may follow the end
	want := "one\ntwo\nthree\n\x1b[31mfour\x1b[0m\n"
	if got := <-follow; got != want {
		t.Errorf("followed %q, want %q", got, want)
	}
	if r := wait(t, c, job); r.Status != event.Succeeded {
		t.Errorf("result: %+v", r)
	}
	// With the same token much later: only what is new is taken.
	l3 := a.openLog(b.LogToken)
	l3.entries(buildLine(3, "four"), buildLine(4, "five"))
	got, err := os.ReadFile(c.LogPath(b.DerivationPath))
	if diff := cmp.Diff(want+"five\n", string(got)); err != nil || diff != "" {
		t.Errorf("log: %v %s", err, diff)
	}
}

// Rule 1 of section 3.4, the worst trap: another process of the coordinator must not count from where the last began.
func TestNumbersGrow(t *testing.T) {
	t.Parallel()
	var numbers []int64
	for range 2 {
		c := startCoordinator(t, coordinator.Config{})
		a := join(t, c, 1)
		submit(t, c, legacyJob())
		a.evaluation()
		a.mu.Lock()
		numbers = append(numbers, a.highest)
		a.mu.Unlock()
		a.disconnect()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if numbers[1] <= numbers[0] || numbers[0] < 1<<32 {
		t.Errorf("numbers of two coordinators: %v", numbers)
	}
}
