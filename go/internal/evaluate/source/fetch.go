package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// QuickRetry are the delays between attempts of a download: agent protocol, section 2.1, "quick".
var QuickRetry = []time.Duration{2718 * time.Millisecond, 7389 * time.Millisecond, 20086 * time.Millisecond, 54598 * time.Millisecond}

const (
	defaultIdle = time.Minute
	// parallel downloads of one task.
	parallel = 4
)

// Fetcher downloads and unpacks the inputs of a task.
type Fetcher struct {
	// Client must not add credentials: the URL itself grants access. nil is http.DefaultClient.
	Client *http.Client
	Limits Limits
	// Retry are the delays between attempts; nil is QuickRetry.
	Retry []time.Duration
	// Idle is how long a download may stand still; 0 is a minute.
	Idle time.Duration
	// Note is told what people may want to know. May be nil; called from several goroutines.
	Note func(text string)
}

// Input is a source to fetch.
type Input struct {
	// Name of the input in the task.
	Name string
	// URL of a gzipped tar archive.
	URL string
	// Directory is the name that the unpacked directory should have; ignored unless [SuitableName] likes it.
	Directory string
}

// FetchAll fetches all inputs into dir, some at a time, and returns where each of them is. The first failure ends
// the others.
func (f *Fetcher) FetchAll(ctx context.Context, dir string, inputs []Input) (map[string]string, error) {
	paths := make([]string, len(inputs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, in := range inputs {
		g.Go(func() (err error) {
			paths[i], err = f.Fetch(gctx, dir, in)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	m := make(map[string]string, len(inputs))
	for i, in := range inputs {
		m[in.Name] = paths[i]
	}
	return m, nil
}

// Fetch puts the input at arg-NAME, or arg-NAME/DIRECTORY, below dir and returns that path. Agent behaviour,
// section 3.2.
func (f *Fetcher) Fetch(ctx context.Context, dir string, in Input) (string, error) {
	if !validInputName(in.Name) {
		return "", fmt.Errorf("the task's input %q has a name that cannot be a file name", clip(in.Name, 100))
	}
	fetched := filepath.Join(dir, "fetch-"+in.Name)
	if err := f.download(ctx, fetched, in); err != nil {
		return "", err
	}
	from := fetched
	entries, err := os.ReadDir(fetched)
	if err != nil {
		return "", err
	}
	if len(entries) == 1 && entries[0].IsDir() {
		from = filepath.Join(fetched, entries[0].Name())
	}
	to := filepath.Join(dir, "arg-"+in.Name)
	if SuitableName(in.Directory) {
		if err := os.Mkdir(to, 0o700); err != nil {
			return "", fmt.Errorf("input %q: %w", in.Name, err)
		}
		to = filepath.Join(to, in.Directory)
	}
	if err := os.Rename(from, to); err != nil {
		return "", fmt.Errorf("input %q: %w", in.Name, err)
	}
	return to, nil
}

func (f *Fetcher) download(ctx context.Context, dir string, in Input) error {
	retry := f.Retry
	if retry == nil {
		retry = QuickRetry
	}
	for attempt := 0; ; attempt++ {
		err := f.attempt(ctx, dir, in)
		if err == nil {
			return nil
		}
		if rmErr := RemoveAll(dir); rmErr != nil {
			return errors.Join(err, rmErr)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err = fmt.Errorf("input %q from %s: %w", in.Name, publicURL(in.URL), err)
		var passing *transferError
		if !errors.As(err, &passing) || attempt >= len(retry) {
			return err
		}
		// A tenth of jitter, so that the agents of a cluster do not come back all at once.
		wait := retry[attempt] + time.Duration(rand.Int64N(int64(retry[attempt])/10+1))
		f.note(fmt.Sprintf("fetching %v; trying again in %s", err, wait.Round(100*time.Millisecond)))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

func (f *Fetcher) note(text string) {
	if f.Note != nil {
		f.Note(text)
	}
}

// transferError is a failure that may pass: the connection, or a server that says so.
type transferError struct{ err error }

func (e *transferError) Error() string { return e.err.Error() }
func (e *transferError) Unwrap() error { return e.err }

func (f *Fetcher) attempt(ctx context.Context, dir string, in Input) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := f.Idle
	if idle <= 0 {
		idle = defaultIdle
	}
	stalled := &transferError{fmt.Errorf("nothing came for %s", idle)}
	timer := time.AfterFunc(idle, func() { cancel(stalled) })
	defer timer.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, in.URL, nil)
	if err != nil {
		return errors.New("the URL is not valid")
	}
	if (req.URL.Scheme != "http" && req.URL.Scheme != "https") || req.URL.Host == "" {
		return errors.New("the URL must begin with http:// or https:// and a host")
	}
	// The body is an archive that is compressed already; without this the transport might unpack it unasked.
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("Accept", "*/*")
	client := f.Client
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		if errors.Is(context.Cause(ctx), stalled) {
			return stalled
		}
		if e := (*url.Error)(nil); errors.As(err, &e) {
			err = e.Err // url.Error shows the whole URL, and its query may be a secret.
		}
		return &transferError{fmt.Errorf("no answer: %w", err)}
	}
	defer res.Body.Close()
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return statusFailure(res)
	}
	body := &bodyReader{r: res.Body, ctx: ctx, tick: func() { timer.Reset(idle) }}
	notes, err := Unpack(ctx, body, dir, f.Limits)
	if err != nil {
		return err
	}
	for _, n := range notes {
		f.note(fmt.Sprintf("input %q: %s", in.Name, n))
	}
	return nil
}

// statusFailure is for an answer that is not the archive.
func statusFailure(res *http.Response) error {
	text := fmt.Sprintf("the server answered %d %s", res.StatusCode, http.StatusText(res.StatusCode))
	sc := bufio.NewScanner(io.LimitReader(res.Body, 4<<10))
	for sc.Scan() {
		if line := strings.TrimSpace(clip(strings.ToValidUTF8(sc.Text(), "?"), 200)); line != "" {
			text += ": " + line
			break
		}
	}
	err := errors.New(strings.TrimSpace(text))
	if res.StatusCode >= 500 || slices.Contains([]int{http.StatusRequestTimeout, http.StatusTooManyRequests}, res.StatusCode) {
		return &transferError{err}
	}
	return err
}

// bodyReader tells a connection that broke from an archive that ends too early.
type bodyReader struct {
	r    io.Reader
	ctx  context.Context //nolint:containedctx // lives as long as one request
	tick func()
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if n > 0 {
		b.tick()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.ctx); cause != nil {
			return n, cause
		}
		err = &transferError{fmt.Errorf("the connection broke: %w", err)}
	}
	return n, err
}

// publicURL is a URL without what may be secret in it.
func publicURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "a URL that cannot be read"
	}
	u.User, u.RawQuery, u.Fragment, u.ForceQuery = nil, "", "", false
	return u.String()
}
