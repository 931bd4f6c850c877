package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"hercules/internal/coordinator/cache/storage"
	"hercules/internal/secrets"
)

// httpError is an error for the client.
type httpError struct {
	status int
	text   string
}

func (e *httpError) Error() string { return e.text }

func fail(status int, format string, args ...any) error {
	return &httpError{status: status, text: fmt.Sprintf(format, args...)}
}

func isHTTPError(err error) bool {
	_, ok := errors.AsType[*httpError](err)
	return ok
}

// bodyError is an error of reading what the client sends: its fault, or it is gone.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "reading the request: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

type access int

const (
	nothing access = iota
	mayRead
	mayWrite
)

func (a access) String() string {
	return [...]string{"none", "Read", "Write"}[a]
}

// Handler serves the cache at the root of its paths. Mounted elsewhere, it is wrapped in [http.StripPrefix].
func (c *Cache) Handler() http.Handler { return http.HandlerFunc(c.serve) }

func (c *Cache) serve(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rec := &recorder{ResponseWriter: w, idle: c.o.Idle, control: http.NewResponseController(w)}
	rec.extendWrite()
	defer rec.finish()
	r.Body = &bodyReader{ReadCloser: r.Body, idle: c.o.Idle, control: rec.control}
	err := c.route(rec, r, strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil {
		c.answerError(rec, r, err)
	}
	c.log.Debug("cache request", "method", r.Method, "path", r.URL.Path, "status", rec.status, "bytes", rec.bytes,
		"duration", time.Since(start))
}

// answerError turns an error into a status and a line of text.
func (c *Cache) answerError(w *recorder, r *http.Request, err error) {
	status, text := http.StatusInternalServerError, "internal error; the server's log has more"
	switch he, ok := errors.AsType[*httpError](err); {
	case ok:
		status, text = he.status, he.text
	case errors.Is(err, fs.ErrNotExist):
		status, text = http.StatusNotFound, "not found"
	case storage.IsNoSpace(err):
		status, text = http.StatusInsufficientStorage, "no space left in this cache"
	default:
		if be, ok := errors.AsType[*bodyError](err); ok {
			status, text = http.StatusBadRequest, be.Error()
			if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
				status, text = http.StatusRequestEntityTooLarge, "the request is too large"
			}
		}
	}
	if status >= 500 {
		c.log.Warn("cache request failed", "method", r.Method, "path", r.URL.Path, "status", status, "error", err)
	}
	if r.Method == http.MethodPut || r.Method == http.MethodPost {
		c.count.rejected.Add(1)
	}
	if w.status != 0 {
		panic(http.ErrAbortHandler) // half a response must not look like a whole one
	}
	h := w.Header()
	for _, name := range []string{"Etag", "Last-Modified", "Content-Length", "Content-Encoding"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Basic realm="`+c.o.Name+`"`)
	}
	if status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	http.Error(w, text, status)
}

func (c *Cache) route(w *recorder, r *http.Request, path string) error {
	if rest, ok := strings.CutPrefix(path, "api/v1/cache/"); ok {
		return c.routeAPI(w, r, rest)
	}
	return c.routePlain(w, r, path)
}

// accessOf is what the request's token may.
func (c *Cache) accessOf(r *http.Request) access {
	token := requestToken(r)
	switch {
	case !token.Empty() && hasToken(c.o.WriteTokens, token):
		return mayWrite
	case c.o.Public, !token.Empty() && hasToken(c.o.ReadTokens, token):
		return mayRead
	}
	return nothing
}

func requestToken(r *http.Request) secrets.Sensitive {
	if _, password, ok := r.BasicAuth(); ok {
		return secrets.NewSensitive(password)
	}
	const bearer = "bearer "
	if h := r.Header.Get("Authorization"); len(h) > len(bearer) && strings.EqualFold(h[:len(bearer)], bearer) {
		return secrets.NewSensitive(strings.TrimSpace(h[len(bearer):]))
	}
	return secrets.Sensitive{}
}

// hasToken looks at all of them, so that time does not tell which one it is.
func hasToken(list []secrets.Sensitive, token secrets.Sensitive) bool {
	found := false
	for _, t := range list {
		if t.Equal(token) {
			found = true
		}
	}
	return found
}

func (c *Cache) require(r *http.Request, want access) error {
	if c.accessOf(r) >= want {
		return nil
	}
	if hasToken(c.o.ReadTokens, requestToken(r)) {
		return fail(http.StatusForbidden, "the token is good for reading only")
	}
	return fail(http.StatusUnauthorized, "this needs a token for the cache %s", c.o.Name)
}

// slotWait is how long an upload waits for its turn.
const slotWait = 30 * time.Second

// slot waits for a turn among the uploads.
func (c *Cache) slot(ctx context.Context) (release func(), err error) {
	select {
	case c.slots <- struct{}{}:
	default:
		t := time.NewTimer(slotWait)
		defer t.Stop()
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, &bodyError{context.Cause(ctx)}
		case <-t.C:
			return nil, fail(http.StatusServiceUnavailable, "too many uploads at once")
		}
	}
	c.count.active.Add(1)
	return func() {
		c.count.active.Add(-1)
		<-c.slots
	}, nil
}

// readBody reads a small body whole.
func readBody(r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, fail(http.StatusRequestEntityTooLarge, "the request is larger than %d bytes", limit)
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fail(http.StatusRequestEntityTooLarge, "the request is larger than %d bytes", limit)
	}
	return data, nil
}

// bodyReader cuts off a client that has stopped sending, and marks its errors.
type bodyReader struct {
	io.ReadCloser
	idle    time.Duration
	control *http.ResponseController
}

func (b *bodyReader) Read(p []byte) (int, error) {
	_ = b.control.SetReadDeadline(time.Now().Add(b.idle)) // not every server can
	n, err := b.ReadCloser.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		// The server goes on watching the connection; what we do with the body may take longer.
		_ = b.control.SetReadDeadline(time.Time{})
	case err != nil:
		err = &bodyError{err}
	}
	return n, err
}

// recorder notes status and size, and cuts off a client that has stopped reading.
type recorder struct {
	http.ResponseWriter
	control *http.ResponseController
	idle    time.Duration
	status  int
	bytes   int64
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) extendWrite() { _ = w.control.SetWriteDeadline(time.Now().Add(w.idle)) }

// finish leaves no deadline to the next request of the connection, which may be another handler's.
func (w *recorder) finish() {
	if w.Header().Get("Content-Length") != "" { // else flushing would make chunks of it
		_ = w.control.Flush()
	}
	_ = w.control.SetWriteDeadline(time.Time{})
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.extendWrite()
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// ReadFrom keeps the server's way of sending files, in pieces each of which has its deadline.
func (w *recorder) ReadFrom(r io.Reader) (int64, error) {
	const piece = 4 << 20
	if w.status == 0 {
		w.status = http.StatusOK
	}
	rest := int64(1<<63 - 1)
	if l, ok := r.(*io.LimitedReader); ok {
		r, rest = l.R, l.N
	}
	var total int64
	for total < rest {
		w.extendWrite()
		n, err := io.Copy(w.ResponseWriter, &io.LimitedReader{R: r, N: min(piece, rest-total)})
		total += n
		w.bytes += n
		if err != nil || n == 0 {
			return total, err
		}
	}
	return total, nil
}
