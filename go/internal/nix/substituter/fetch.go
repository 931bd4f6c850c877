package substituter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"hercules/internal/nix/narinfo"
)

// fetcher gets small files of a cache. A file that is not there is (nil, nil).
type fetcher interface {
	fetch(ctx context.Context, name string) ([]byte, error)
	close()
}

// dirFetcher is a cache in a directory.
type dirFetcher string

func (d dirFetcher) fetch(_ context.Context, name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(string(d), name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f)
}

func (dirFetcher) close() {}

func readLimited(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, narinfo.MaxSize+1))
	if err == nil && len(text) > narinfo.MaxSize {
		err = fmt.Errorf("more than %d bytes", narinfo.MaxSize)
	}
	return text, err
}

const (
	attempts = 4
	// requestLimit bounds one attempt, body included.
	requestLimit = 30 * time.Second
	// concurrency is the number of requests at once to one store.
	concurrency = 32
)

// httpFetcher is a cache behind HTTP.
type httpFetcher struct {
	client  *http.Client
	own     *http.Transport // ours to close
	base    string
	user    *url.Userinfo
	backoff time.Duration
}

func newTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = concurrency
	return t
}

func (f *httpFetcher) close() {
	if f.own != nil {
		f.own.CloseIdleConnections()
	}
}

func (f *httpFetcher) fetch(ctx context.Context, name string) ([]byte, error) {
	pause := f.backoff
	for attempt := 1; ; attempt++ {
		text, again, err := f.once(ctx, name)
		if err == nil || !again || attempt == attempts || ctx.Err() != nil {
			return text, err
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		case <-timer.C:
		}
		pause *= 2
	}
}

// once makes one attempt; again tells whether another may end differently.
func (f *httpFetcher) once(parent context.Context, name string) (text []byte, again bool, err error) {
	ctx, cancel := context.WithTimeoutCause(parent, requestLimit, fmt.Errorf("no answer within %v", requestLimit))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.base+"/"+name, nil)
	if err != nil {
		return nil, false, err
	}
	if f.user != nil {
		password, _ := f.user.Password()
		req.SetBasicAuth(f.user.Username(), password)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		if err := plainError(ctx, err); unreachable(err) {
			return nil, false, &UnreachableError{err}
		}
		return nil, true, plainError(ctx, err)
	}
	defer resp.Body.Close()
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
		text, err = readLimited(resp.Body)
		if err != nil {
			return nil, len(text) <= narinfo.MaxSize, plainError(ctx, err)
		}
		return text, false, nil
	// As Nix has it: S3 says 403 for what is not there in a bucket that cannot be listed.
	case code == http.StatusNotFound, code == http.StatusGone, code == http.StatusForbidden:
		drain(resp.Body)
		return nil, false, nil
	default:
		drain(resp.Body)
		again = code == http.StatusTooManyRequests || code == http.StatusRequestTimeout ||
			code >= 500 && code != http.StatusNotImplemented && code != http.StatusHTTPVersionNotSupported
		return nil, again, fmt.Errorf("the server answered %s", resp.Status)
	}
}

// drain makes the connection usable again.
func drain(body io.Reader) { _, _ = io.Copy(io.Discard, io.LimitReader(body, 64<<10)) }

// plainError leaves out the URL, which the caller says, and says why a context ended.
func plainError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}
