// Package fault tells the errors of uploads apart: those that may pass, those that do not, and those that mean that
// credentials are wrong. It repeats what may pass.
//
// It knows HTTP, and neither caches nor store paths.
package fault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Kind of an error.
type Kind uint8

// The kinds.
const (
	// Permanent: trying again does not help.
	Permanent Kind = iota
	// Transient: it may pass.
	Transient
	// Auth: credentials are missing, wrong or not good for this.
	Auth
)

func (k Kind) String() string {
	switch k {
	case Transient:
		return "transient"
	case Auth:
		return "auth"
	default:
		return "permanent"
	}
}

// Error is an error with its kind.
type Error struct {
	Kind Kind
	// Status is the HTTP status, where that is the error.
	Status int
	// After is how long the server wants to be left alone; 0 when it does not say.
	After time.Duration
	// Final: it was tried again already.
	Final bool
	Err   error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// As gives an error a kind.
func As(k Kind, err error) error { return &Error{Kind: k, Err: err} }

// Finally keeps an error that was tried again already from being tried once more.
func Finally(err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Kind: e.Kind, Status: e.Status, Final: true, Err: err}
	}
	return err
}

// KindOf is the kind of an error; one that has none is permanent.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Permanent
}

// StatusOf is the HTTP status that an error is of, or 0.
func StatusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 0
}

// maxText bounds what is read of the text of an error.
const maxText = 4 << 10

// Status makes an error of a response that is not what was hoped for. It reads the body and does not close it.
func Status(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxText))
	e := &Error{Kind: kind(resp.StatusCode), Status: resp.StatusCode, After: retryAfter(resp, body)}
	text := "the server answered " + resp.Status
	if words := plain(resp, body); words != "" {
		text += ": " + words
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		text += " (look at the token, key or netrc for it)"
	case http.StatusRequestEntityTooLarge:
		text += " (it does not take files of this size)"
	}
	e.Err = errors.New(text)
	return e
}

func kind(status int) Kind {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusProxyAuthRequired:
		return Auth
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status == http.StatusTooEarly:
		return Transient
	case status == http.StatusNotImplemented, status == http.StatusHTTPVersionNotSupported, status == http.StatusInsufficientStorage:
		return Permanent
	case status >= 500:
		return Transient
	default:
		return Permanent
	}
}

// plain is what the body has to say to people; not a page for browsers.
func plain(resp *http.Response, body []byte) string {
	t := resp.Header.Get("Content-Type")
	if strings.Contains(t, "html") || bytes.HasPrefix(bytes.TrimSpace(body), []byte("<")) && !strings.Contains(t, "xml") {
		return ""
	}
	text := strings.ToValidUTF8(string(body), "\ufffd")
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r == ' ' }), " ")
	if r := []rune(text); len(r) > 300 {
		text = string(r[:300]) + "…"
	}
	return text
}

// retryAfter reads the header, seconds or a date, and what some front ends put into the body instead.
func retryAfter(resp *http.Response, body []byte) time.Duration {
	value := strings.TrimSpace(resp.Header.Get("Retry-After"))
	if n, err := strconv.Atoi(value); err == nil {
		return time.Duration(max(0, min(n, 1e6))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
		var problem struct {
			RetryAfter float64 `json:"retry_after"`
		}
		if json.Unmarshal(body, &problem) == nil && problem.RetryAfter > 0 {
			return time.Duration(min(problem.RetryAfter, 1e6) * float64(time.Second))
		}
	}
	return 0
}

// Sent makes an error of what http.Client.Do says: it may pass, unless the context ended.
func Sent(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // without the URL, in which may be a secret
	}
	if k := KindOf(err); k != Permanent {
		return err
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	return As(Transient, err)
}

// Policy of repeating.
type Policy struct {
	// First is the pause before the second attempt; it doubles, up to Most. Each is jittered.
	First, Most time.Duration
	// Total bounds the time from the first attempt to the beginning of the last.
	Total time.Duration
	// Patience bounds the pause that a server may ask for.
	Patience time.Duration
}

// Default is the policy where none is given.
var Default = Policy{First: 500 * time.Millisecond, Most: 15 * time.Second, Total: 90 * time.Second, Patience: 120 * time.Second}

// Retry calls op until it succeeds, fails with an error that does not pass, or the policy gives up. Then the error tells
// how often it was tried.
func Retry(ctx context.Context, p Policy, op func(context.Context) error) error {
	if p == (Policy{}) {
		p = Default
	}
	begin := time.Now()
	pause := p.First
	for attempt := 1; ; attempt++ {
		err := op(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Kind != Transient || e.Final {
			return err
		}
		wait := pause/2 + rand.N(pause/2+1)
		if e.After > 0 {
			wait = max(wait, e.After)
		}
		if time.Since(begin)+wait > max(p.Total, min(e.After, p.Patience)) || e.After > p.Patience {
			if attempt > 1 {
				return fmt.Errorf("%w, also in attempt %d", err, attempt)
			}
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
		pause = min(2*pause, p.Most)
	}
}

// Drain reads what is left of a small body, which makes its connection usable again, and closes it.
func Drain(body io.ReadCloser) {
	_, _ = io.Copy(io.Discard, io.LimitReader(body, 64<<10))
	_ = body.Close()
}
