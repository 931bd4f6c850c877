// Package agentclient is the HTTP side of the agent protocol as the agent uses it (section 2): every endpoint
// that an agent calls, with the retry policy that belongs to it.
//
// It must not know when and why an agent calls, nor about the websockets.
package agentclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"hercules/internal/wire/agentapi"
)

const (
	// headerTimeout limits the wait for a response once the request is sent (section 2.1).
	headerTimeout = 30 * time.Second
	// attemptTimeout limits one attempt, its bodies included. A body can have tens of megabytes.
	attemptTimeout = 10 * time.Minute
	// maxResult is more than any result of an agent's endpoint.
	maxResult = 4 << 20
	// maxErrorBody is how much of an error's body is shown.
	maxErrorBody = 500
)

// Options describe a client.
type Options struct {
	// BaseURL is apiBaseUrl of the configuration. A path in it is kept as a prefix.
	BaseURL string
	// Transport carries the requests; nil: as section 2.1 says, with the proxy of the environment.
	Transport http.RoundTripper
	// Log is told of repetitions. May be nil.
	Log *slog.Logger
}

// Client calls a coordinator. It is safe for concurrent use.
type Client struct {
	base  string
	http  *http.Client
	log   *slog.Logger
	token string
}

// New returns a client without a token. ServiceInfo and CreateSession need no other.
func New(o Options) (*Client, error) {
	u, err := url.Parse(o.BaseURL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, errors.New("apiBaseUrl must be a complete URL that starts with http:// or https://")
	}
	u.RawQuery, u.Fragment = "", ""
	transport := o.Transport
	if transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.ResponseHeaderTimeout = headerTimeout
		transport = t
	}
	return &Client{
		base: strings.TrimRight(u.String(), "/") + "/api/v1/",
		http: &http.Client{Transport: transport, CheckRedirect: checkRedirect},
		log:  o.Log,
	}, nil
}

// WithToken returns a client that uses the token of a session.
func (c *Client) WithToken(token string) *Client {
	d := *c
	d.token = token
	return &d
}

// CloseIdle closes connections that are not in use.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }

// checkRedirect follows 10 redirects, but none that would turn a report into a mere question.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) > 10 {
		return errors.New("more than 10 redirects")
	}
	if r.Method != via[0].Method {
		return fmt.Errorf("redirected to %s, which would lose the report; change apiBaseUrl", r.URL.Redacted())
	}
	return nil
}

// StatusError is an answer that is no success.
type StatusError struct {
	// Request is the method and the path.
	Request string
	Status  int
	// Body is the start of the answer.
	Body string
}

func (e *StatusError) Error() string {
	msg := fmt.Sprintf("%s: %d %s", e.Request, e.Status, http.StatusText(e.Status))
	if e.Body != "" {
		msg += fmt.Sprintf(": %q", e.Body)
	}
	return msg
}

// ServiceInfo asks for the coordinator's version and socket addresses. It is not repeated and needs no token.
func (c *Client) ServiceInfo(ctx context.Context) (*agentapi.ServiceInfo, error) {
	info := new(agentapi.ServiceInfo)
	return info, c.WithToken("").call(ctx, None, http.MethodGet, "agent/service-info", nil, info)
}

// CreateSession joins the cluster of a join token and returns the token of the session. It is not repeated.
func (c *Client) CreateSession(ctx context.Context, joinToken string, info agentapi.AgentInfo) (string, error) {
	var session string
	err := c.WithToken(joinToken).call(ctx, None, http.MethodPost, "agent/session", &agentapi.CreateAgentSession{AgentInfo: info}, &session)
	if err == nil && session == "" {
		err = errors.New("POST agent/session: the session token is empty")
	}
	return session, err
}

// Goodbye says that this run of the agent ends. It is repeated until it succeeds or ctx ends.
func (c *Client) Goodbye(ctx context.Context, start agentapi.StartInfo) error {
	return c.call(ctx, Endless, http.MethodPost, "agent/goodbye", &start, nil)
}

// PostTaskStatus is the final word on a task. It is repeated until it succeeds or ctx ends.
func (c *Client) PostTaskStatus(ctx context.Context, task agentapi.ID, status agentapi.TaskStatus) error {
	return c.call(ctx, Endless, http.MethodPost, "tasks/"+segment(string(task)), &status, nil)
}

// PostEvaluateEvents reports what an evaluation found. Repetition may deliver events twice.
func (c *Client) PostEvaluateEvents(ctx context.Context, task agentapi.ID, events []agentapi.EvaluateEvent) error {
	return c.call(ctx, Default, http.MethodPost, "tasks/"+segment(string(task))+"/eval", &events, nil)
}

// PostBuildEvents reports what a build made. Repetition may deliver events twice.
func (c *Client) PostBuildEvents(ctx context.Context, task agentapi.ID, events []agentapi.BuildEvent) error {
	return c.call(ctx, Default, http.MethodPost, "tasks/"+segment(string(task))+"/build", &events, nil)
}

// EvalBuild asks for the state of the build of a derivation; nil means that none is planned yet.
func (c *Client) EvalBuild(ctx context.Context, drvPath string) (*agentapi.EvalBuild, error) {
	var state *agentapi.EvalBuild
	return state, c.call(ctx, Default, http.MethodGet, "agent/eval-build/"+segment(drvPath), nil, &state)
}

// segment is s as one segment of a path, slashes included.
func segment(s string) string { return url.PathEscape(s) }

// call makes a request and repeats it as the policy says. A nil result means that the answer's body is ignored.
func (c *Client) call(ctx context.Context, policy Policy, method, path string, body, result any) error {
	what := method + " " + path
	var data []byte
	if body != nil {
		var err error
		if data, err = agentapi.Marshal(body); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return Retry(ctx, policy, c.log, what, func(ctx context.Context) error {
		return c.attempt(ctx, what, method, path, data, result)
	})
}

func (c *Client) attempt(ctx context.Context, what, method, path string, data []byte, result any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, attemptTimeout, fmt.Errorf("no complete answer within %v", attemptTimeout))
	defer cancel()
	var body io.Reader
	if data != nil {
		body = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return permanent{fmt.Errorf("%s: %w", what, err)}
	}
	if data != nil {
		r.Header.Set("Content-Type", "application/json;charset=utf-8")
	}
	if result != nil {
		r.Header.Set("Accept", "application/json;charset=utf-8,application/json")
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("%s: %w", what, c.unwrap(ctx, err))
	}
	defer func() {
		// What little is left is read so that the connection can be used again.
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
		_ = resp.Body.Close()
	}()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		start, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody+1))
		return &StatusError{Request: what, Status: resp.StatusCode, Body: c.presentable(start)}
	}
	if result == nil {
		return nil
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxResult+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s: reading the answer: %w", what, c.unwrap(ctx, err))
	case len(answer) > maxResult:
		return fmt.Errorf("%s: the answer is larger than %d bytes", what, maxResult)
	}
	if err := agentapi.Unmarshal(answer, result); err != nil {
		return fmt.Errorf("%s: answer of type %q: %w", what, resp.Header.Get("Content-Type"), err)
	}
	return nil
}

// unwrap leaves out the URL, which the caller names, and prefers the reason why ctx ended.
func (*Client) unwrap(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// presentable is the start of an answer, without the token that a server may have repeated in it.
func (c *Client) presentable(body []byte) string {
	cut := len(body) > maxErrorBody
	text := strings.TrimSpace(strings.ToValidUTF8(string(body), "\uFFFD"))
	if c.token != "" {
		text = strings.ReplaceAll(text, c.token, "[redacted]")
		if cut {
			text = dropStart(text, c.token)
		}
	}
	if cut {
		text += "…"
	}
	return text
}

// dropStart removes from the end of text what may be the start of the token, cut off in the middle.
func dropStart(text, token string) string {
	for n := min(len(token), len(text)); n > 0; n-- {
		if strings.HasSuffix(text, token[:n]) {
			return text[:len(text)-n]
		}
	}
	return text
}
