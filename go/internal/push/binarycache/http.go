package binarycache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"hercules/internal/nix/narinfo"
	"hercules/internal/push/fault"
)

// How long a small request may take, and for how long an upload may stand still.
const (
	requestLimit = 30 * time.Second
	idleLimit    = 2 * time.Minute
)

// server is a cache behind HTTP that takes PUT.
type server struct {
	client *http.Client
	base   string
	user   *url.Userinfo
	policy fault.Policy
	tmp    string
	noHead atomic.Bool // it does not know HEAD
}

func (s *server) open(context.Context) error { return nil }

func (s *server) close() {}

func (s *server) spool() *spool { return &spool{create: nameless(s.tmp)} }

func (s *server) discard(sp *spool) { _ = sp.close() }

func (s *server) request(ctx context.Context, method, name string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.base+"/"+name, body)
	if err == nil && s.user != nil {
		password, _ := s.user.Password()
		req.SetBasicAuth(s.user.Username(), password)
	}
	return req, err
}

// has takes 403 for missing, as Nix does: S3 says so of what is not there in a bucket that may not be listed. What is
// really forbidden is told by the upload.
func (s *server) has(ctx context.Context, name string) (there bool, err error) {
	err = fault.Retry(ctx, s.policy, func(ctx context.Context) error {
		method := http.MethodHead
		if s.noHead.Load() {
			method = http.MethodGet
		}
		resp, end, err := s.small(ctx, method, name)
		if err != nil {
			return err
		}
		defer end()
		switch resp.StatusCode {
		case http.StatusOK, http.StatusNoContent:
			there = true
			return nil
		case http.StatusNotFound, http.StatusGone, http.StatusForbidden:
			there = false
			return nil
		case http.StatusMethodNotAllowed, http.StatusNotImplemented:
			if !s.noHead.Swap(true) || method == http.MethodHead {
				return fault.As(fault.Transient, fault.Status(resp))
			}
		}
		return fault.Status(resp)
	})
	return there, err
}

func (s *server) get(ctx context.Context, name string) (text []byte, err error) {
	err = fault.Retry(ctx, s.policy, func(ctx context.Context) error {
		resp, end, err := s.small(ctx, http.MethodGet, name)
		if err != nil {
			return err
		}
		defer end()
		switch resp.StatusCode {
		case http.StatusOK:
			text, err = io.ReadAll(io.LimitReader(resp.Body, narinfo.MaxSize))
			if err != nil {
				return fault.Sent(ctx, err)
			}
			return nil
		case http.StatusNotFound, http.StatusGone, http.StatusForbidden:
			return nil
		}
		return fault.Status(resp)
	})
	return text, err
}

// small is a request that is answered at once.
func (s *server) small(parent context.Context, method, name string) (*http.Response, func(), error) {
	ctx, cancel := context.WithTimeoutCause(parent, requestLimit, fault.As(fault.Transient, fmt.Errorf("no answer within %v", requestLimit)))
	req, err := s.request(ctx, method, name, nil)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		err = fault.Sent(ctx, err)
		cancel()
		return nil, nil, err
	}
	return resp, func() {
		fault.Drain(resp.Body)
		cancel()
	}, nil
}

func (s *server) put(ctx context.Context, name, contentType string, sp *spool) error {
	return fault.Retry(ctx, s.policy, func(ctx context.Context) error {
		ctx, watch := fault.NewWatch(ctx, idleLimit)
		defer watch.Stop()
		body := func() (io.ReadCloser, error) { return watch.Reader(sp.reader()), nil }
		first, _ := body()
		req, err := s.request(ctx, http.MethodPut, name, first)
		if err != nil {
			return err
		}
		req.ContentLength = sp.size
		req.GetBody = body // for redirects, and connections that the server has closed
		req.Header.Set("Content-Type", contentType)
		if sp.size > spoolMemory {
			// A refusal comes before the data, not in the middle of it.
			req.Header.Set("Expect", "100-continue")
		}
		resp, err := s.client.Do(req)
		if err != nil {
			return fault.Sent(ctx, err)
		}
		defer fault.Drain(resp.Body)
		if resp.StatusCode/100 == 2 {
			return nil
		}
		return fault.Status(resp)
	})
}

// parseHTTP checks the URL of a cache and takes credentials and parameters off it.
func parseHTTP(uri string) (base string, user *url.Userinfo, q url.Values, err error) {
	u, err := url.Parse(uri)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the URL may have a password
		}
		return "", nil, nil, err
	}
	if u.Host == "" {
		return "", nil, nil, errors.New("no host")
	}
	user, q = u.User, u.Query()
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return strings.TrimRight(u.String(), "/"), user, q, nil
}

// content is a spool of a small text.
func content(text []byte) *spool { return &spool{mem: bytes.Clone(text), size: int64(len(text))} }
