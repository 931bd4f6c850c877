package evaluate_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"hercules/internal/wire/agentapi"
)

const (
	token  = "session-token"
	taskID = agentapi.ID("7c1e0001-52f4-4a6b-9b0d-3e8f6a210017")
)

// coordinator is the other end of the protocol, and a strict one: it refuses events that contradict what came before.
type coordinator struct {
	t      *testing.T
	server *httptest.Server
	// build makes a derivation's outputs; its error is a failed build. It is called once an attempt.
	build func(drv string) error

	posting atomic.Bool

	mu       sync.Mutex
	files    map[string][]byte
	events   []agentapi.EvaluateEvent
	posts    int
	keys     map[string]bool
	infos    map[string]*agentapi.DerivationInfo
	requests map[string]int
	builds   map[string]*attempt
	ifds     int64
	messages int64
	required int64
	onEvent  func(*agentapi.EvaluateEvent)
	onPoll   func(drv string)
	// unordered: attributes come in no certain order, because they wait for builds.
	unordered bool
	running   sync.WaitGroup
}

type attempt struct {
	id     agentapi.ID
	polls  int
	status agentapi.DerivationStatus
}

func newCoordinator(t *testing.T) *coordinator {
	c := &coordinator{
		t: t, files: map[string][]byte{}, keys: map[string]bool{}, infos: map[string]*agentapi.DerivationInfo{},
		requests: map[string]int{}, builds: map[string]*attempt{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /source/{name}", c.source)
	mux.HandleFunc("POST /api/v1/tasks/{id}/eval", c.evaluate)
	mux.HandleFunc("GET /api/v1/agent/eval-build/{drv}", c.evalBuild)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("unexpected request %s %s", r.Method, r.URL)
		http.NotFound(w, r)
	})
	c.server = httptest.NewServer(mux)
	t.Cleanup(func() {
		c.server.Close()
		c.running.Wait()
	})
	return c
}

func (c *coordinator) source(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "" {
		c.t.Error("a source was asked for with credentials")
	}
	c.mu.Lock()
	body, ok := c.files[r.PathValue("name")]
	c.mu.Unlock()
	if !ok {
		http.Error(w, "no such source", http.StatusNotFound)
		return
	}
	_, _ = w.Write(body)
}

func (c *coordinator) authorized(w http.ResponseWriter, r *http.Request) bool {
	if r.Header.Get("Authorization") != "Bearer "+token {
		c.t.Errorf("%s has Authorization %q", r.URL, r.Header.Get("Authorization"))
		http.Error(w, "who are you", http.StatusUnauthorized)
		return false
	}
	return true
}

func (c *coordinator) evaluate(w http.ResponseWriter, r *http.Request) {
	if !c.authorized(w, r) {
		return
	}
	if r.PathValue("id") != string(taskID) {
		c.t.Errorf("events of task %s", r.PathValue("id"))
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // The agent went away; it will say why.
	}
	var events agentapi.List[agentapi.EvaluateEvent]
	if err := agentapi.Unmarshal(body, &events); err != nil {
		c.t.Errorf("events cannot be decoded: %v", err)
	}
	if !c.posting.CompareAndSwap(false, true) {
		c.t.Error("two posts at a time")
	}
	defer c.posting.Store(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(events) > 1000 {
		c.t.Errorf("a batch of %d events", len(events))
	}
	c.posts++
	for i := range events {
		if problem := c.ingest(&events[i]); problem != "" {
			c.t.Errorf("event %s: %s", show(&events[i]), problem)
		}
		c.events = append(c.events, events[i])
		if c.onEvent != nil {
			c.onEvent(&events[i])
		}
	}
}

// ingest checks an event against those before it: agent protocol, section 5.3.
func (c *coordinator) ingest(e *agentapi.EvaluateEvent) string {
	once := func(kind string, key ...string) string {
		k, _ := json.Marshal(append([]string{kind}, key...))
		if c.keys[string(k)] {
			return "there was one with this key before"
		}
		c.keys[string(k)] = true
		return ""
	}
	next := func(n *int64, got int64) string {
		if *n++; got != *n-1 {
			return fmt.Sprintf("index %d, want %d", got, *n-1)
		}
		return ""
	}
	switch {
	case e.Attribute != nil:
		return once("attribute", e.Attribute.ExpressionPath...)
	case e.AttributeEffect != nil:
		return once("effect", e.AttributeEffect.ExpressionPath...)
	case e.AttributeError != nil:
		return once("error", e.AttributeError.ExpressionPath...)
	case e.AttributeIFD != nil:
		return next(&c.ifds, e.AttributeIFD.Index)
	case e.Message != nil:
		return next(&c.messages, e.Message.Index)
	case e.BuildRequired != nil:
		return next(&c.required, e.BuildRequired.Index)
	case e.JobConfig != nil:
		return once("config")
	case e.OnPushHandlerEvent != nil:
		return once("push", e.OnPushHandlerEvent.HandlerName)
	case e.OnScheduleHandlerEvent != nil:
		return once("schedule", e.OnScheduleHandlerEvent.HandlerName)
	case e.DerivationInfo != nil:
		d := e.DerivationInfo
		for in := range d.InputDerivations {
			if c.infos[in] == nil {
				return "before its input " + in
			}
		}
		c.infos[d.DerivationPath] = d
		return once("info", d.DerivationPath)
	case e.BuildRequest != nil:
		b := e.BuildRequest
		if c.infos[b.DerivationPath] == nil {
			return "before its DerivationInfo"
		}
		if !b.ForceRebuild && c.requests[b.DerivationPath] > 0 {
			return "requested twice"
		}
		c.requests[b.DerivationPath]++
		return ""
	case e.SubstitutionQueryResult != nil:
		s := e.SubstitutionQueryResult
		if c.infos[s.Derivation] == nil {
			return "before its DerivationInfo"
		}
		return once("cache", s.StoreURI, s.Derivation, s.OutputName)
	}
	return "of no known kind"
}

// evalBuild plans a build when it was requested, and runs it: null, then Waiting, then Building until it is done.
func (c *coordinator) evalBuild(w http.ResponseWriter, r *http.Request) {
	if !c.authorized(w, r) {
		return
	}
	drv := r.PathValue("drv")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.onPoll != nil {
		c.onPoll(drv)
	}
	n := c.requests[drv]
	if n == 0 {
		c.t.Errorf("polled for %s before it was requested", drv)
	}
	key := fmt.Sprintf("%s %d", drv, n)
	b := c.builds[key]
	if b == nil {
		b = &attempt{id: agentapi.NewID(), status: agentapi.Waiting}
		c.builds[key] = b
		if c.build != nil {
			c.running.Go(func() {
				err := c.build(drv)
				c.mu.Lock()
				defer c.mu.Unlock()
				b.status = agentapi.BuildSuccess
				if err != nil {
					b.status = agentapi.BuildFailure
				}
			})
		}
	}
	answer := []byte("null")
	if b.polls++; b.polls > 1 {
		var err error
		if answer, err = agentapi.Marshal(&agentapi.EvalBuild{Attempt: b.id, Status: b.status}); err != nil {
			c.t.Error(err)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer)
}

// lines are the events as short lines. Those of the walk come in their order; the others, which are made beside it,
// come sorted after them.
func (c *coordinator) lines() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var walk, rest []string
	for i := range c.events {
		e := &c.events[i]
		if e.DerivationInfo != nil || e.BuildRequest != nil || e.SubstitutionQueryResult != nil || e.BuildRequired != nil {
			rest = append(rest, show(e))
		} else {
			walk = append(walk, show(e))
		}
	}
	slices.Sort(rest)
	if c.unordered {
		about := func(line string) string {
			_, path, _ := strings.Cut(line, " ")
			path, _, _ = strings.Cut(path, " ")
			return path
		}
		slices.SortStableFunc(walk, func(a, b string) int { return strings.Compare(about(a), about(b)) })
	}
	lines := append(walk, rest...)
	for i := range lines {
		lines[i] = storeHash.ReplaceAllString(lines[i], "/nix/store/…-")
	}
	return lines
}

var storeHash = regexp.MustCompile("/nix/store/[0-9a-z]{32}-")

// name of a store path, without the hash.
func name(path string) string {
	_, n, _ := strings.Cut(strings.TrimPrefix(path, "/nix/store/"), "-")
	return strings.TrimSuffix(n, ".drv")
}

func show(e *agentapi.EvaluateEvent) string {
	path := func(p []string) string {
		b, _ := json.Marshal(append([]string{}, p...))
		return string(b)
	}
	opt := func(s *string) string {
		if s == nil {
			return "-"
		}
		return name(*s)
	}
	switch {
	case e.Attribute != nil:
		return fmt.Sprintf("Attribute %s %s %s", path(e.Attribute.ExpressionPath), name(e.Attribute.DerivationPath), e.Attribute.Typ)
	case e.AttributeEffect != nil:
		return fmt.Sprintf("AttributeEffect %s %s %v", path(e.AttributeEffect.ExpressionPath), name(e.AttributeEffect.DerivationPath), len(e.AttributeEffect.SecretsToUse))
	case e.AttributeError != nil:
		a := e.AttributeError
		typ := "-"
		if a.ErrorType != nil {
			typ = *a.ErrorType
		}
		return fmt.Sprintf("AttributeError %s %s %s: %s", path(a.ExpressionPath), typ, opt(a.ErrorDerivation), firstLine(a.ErrorMessage))
	case e.AttributeIFD != nil:
		a := e.AttributeIFD
		return fmt.Sprintf("AttributeIFD %s %s!%s done=%t", path(a.ExpressionPath), name(a.DerivationPath), a.DerivationOutput, a.Done)
	case e.Message != nil:
		return fmt.Sprintf("Message %s %s", e.Message.Typ, e.Message.Message)
	case e.DerivationInfo != nil:
		d := e.DerivationInfo
		var in []string
		for p := range d.InputDerivations {
			in = append(in, name(p))
		}
		slices.Sort(in)
		return fmt.Sprintf("DerivationInfo %s inputs=%v outputs=%d", name(d.DerivationPath), in, len(d.Outputs))
	case e.BuildRequired != nil:
		return fmt.Sprintf("BuildRequired %s!%s", name(e.BuildRequired.DerivationPath), e.BuildRequired.OutputName)
	case e.BuildRequest != nil:
		return fmt.Sprintf("BuildRequest %s force=%t", name(e.BuildRequest.DerivationPath), e.BuildRequest.ForceRebuild)
	case e.SubstitutionQueryResult != nil:
		s := e.SubstitutionQueryResult
		return fmt.Sprintf("SubstitutionQueryResult %s!%s %t", name(s.Derivation), s.OutputName, s.OutputInfo != nil)
	case e.JobConfig != nil:
		return "JobConfig"
	case e.OnPushHandlerEvent != nil:
		h := e.OnPushHandlerEvent
		return fmt.Sprintf("OnPushHandlerEvent %s inputs=%d flake=%t", h.HandlerName, len(h.HandlerExtraInputs), h.IsFlake)
	case e.OnScheduleHandlerEvent != nil:
		h := e.OnScheduleHandlerEvent
		return fmt.Sprintf("OnScheduleHandlerEvent %s inputs=%d flake=%t", h.HandlerName, len(h.HandlerExtraInputs), h.IsFlake)
	}
	return "?"
}

func firstLine(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		if strings.HasPrefix(s, "\x1b[") {
			if i := strings.IndexByte(s, 'm'); i > 0 {
				s = s[i+1:]
				continue
			}
		}
		if s[0] == '\n' {
			break
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}

// tarball of files (name, contents, …) in a directory, as a forge makes it.
func tarball(t *testing.T, files ...string) []byte {
	t.Helper()
	var entries []tar.Header
	var bodies []string
	for i := 0; i+1 < len(files); i += 2 {
		entries = append(entries, tar.Header{Typeflag: tar.TypeReg, Name: "widgets-3f9b0c4d/" + files[i], Mode: 0o644, Size: int64(len(files[i+1]))})
		bodies = append(bodies, files[i+1])
	}
	return pack(t, entries, bodies)
}

func pack(t *testing.T, entries []tar.Header, bodies []string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for i := range entries {
		if err := w.WriteHeader(&entries[i]); err != nil {
			t.Fatal(err)
		}
		if i < len(bodies) {
			if _, err := io.WriteString(w, bodies[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
