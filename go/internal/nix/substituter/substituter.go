// Package substituter asks binary caches and other stores which store paths they have, without copying anything.
//
// Caches over HTTP and in directories are read directly; every other kind of store is opened by Nix itself. Answers
// are not checked for signatures: what is copied later is checked by Nix.
package substituter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"hercules/internal/nix/daemon"
)

// Store is something that has store paths. It is safe for concurrent use.
type Store interface {
	// URI is how Nix names the store, without a password.
	URI() string
	// Query gives what the store knows of those of the paths that it has; others are absent. What was once
	// answered, also with no, is not asked again; the answers are shared and not to be changed.
	Query(ctx context.Context, paths []string) (map[string]*daemon.PathInfo, error)
	// Close ends connections. Call it when no query runs.
	Close() error
}

// Options of [Open]. The zero value works.
type Options struct {
	// Client for HTTP; nil means one of the package, with keep-alive for as many connections as are used.
	Client *http.Client
	// Netrc is the file with credentials for HTTP, as in Nix's netrc-file; a file that is not there is none.
	Netrc string
	// Nix is the nix-daemon program that opens other kinds of store; empty means the one of PATH.
	Nix string
	// Env is the environment of that program; nil means the process's own.
	Env []string
	// Settings are sent to it.
	Settings map[string]string
	// Backoff is the pause before the first retry of an HTTP request; it doubles. Zero means 200 ms.
	Backoff time.Duration
}

// Open opens a store by its URI: http://, https:// and file:// are binary caches; anything else is what Nix takes
// for a store (s3://…, ssh-ng://…, local?root=…, a path). It does not wait for the store to answer.
func Open(_ context.Context, uri string, o Options) (Store, error) {
	switch {
	case strings.HasPrefix(uri, "http://"), strings.HasPrefix(uri, "https://"):
		u, err := url.Parse(uri)
		if err != nil {
			// What is wrong, without the URL, which may have a password.
			if e, ok := errors.AsType[*url.Error](err); ok {
				err = e.Err
			}
			return nil, fmt.Errorf("the URL of a cache: %w", err)
		}
		if u.Host == "" {
			return nil, fmt.Errorf("cache %s: no host", u.Redacted())
		}
		return newHTTP(u, o)
	case strings.HasPrefix(uri, "file://"):
		dir, _, _ := strings.Cut(strings.TrimPrefix(uri, "file://"), "?")
		if !strings.HasPrefix(dir, "/") {
			return nil, fmt.Errorf("cache %s: not an absolute path", uri)
		}
		return newBinaryCache(uri, dirFetcher(dir)), nil
	case uri == "":
		return nil, fmt.Errorf("the URI of a store is empty")
	}
	return newDaemonStore(uri, o), nil
}

func newHTTP(u *url.URL, o Options) (Store, error) {
	shown := *u
	f := &httpFetcher{client: o.Client, backoff: o.Backoff, user: u.User}
	if f.client == nil {
		f.own = newTransport()
		f.client = &http.Client{Transport: f.own}
	}
	if f.backoff <= 0 {
		f.backoff = 200 * time.Millisecond
	}
	if o.Netrc != "" && f.user == nil {
		text, err := os.ReadFile(o.Netrc)
		if err != nil && !os.IsNotExist(err) {
			return nil, fmt.Errorf("cache %s: netrc: %w", u.Redacted(), err)
		}
		f.user = findNetrc(string(text), u.Hostname())
	}
	base := *u
	base.User, base.RawQuery, base.Fragment = nil, "", "" // parameters of the store are for Nix, not for the server
	f.base = strings.TrimRight(base.String(), "/")
	return newBinaryCache(shown.Redacted(), f), nil
}
