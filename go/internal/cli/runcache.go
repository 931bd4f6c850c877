package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"hercules/internal/coordinator/cache"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/localstore"
	"hercules/internal/nix/nixconf"
	"hercules/internal/secrets"
)

// runCache is the binary cache of one run: a directory that is served on loopback for as long as the run takes.
type runCache struct {
	*cache.Cache
	dir    string
	url    string
	server *http.Server
	served chan struct{}
}

// startCache opens the cache in a directory, which is created.
func startCache(dir string, log *slog.Logger) (*runCache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("--cache: %w", err)
	}
	token := rand.Text()
	c, err := cache.Open(dir, cache.Options{
		Name: "hci-run", Public: true, WriteTokens: []secrets.Sensitive{secrets.NewSensitive(token)}, Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("--cache: %w", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--cache: %w", err), c.Close())
	}
	// Who knows the address may write. It is another one each time, also because Nix remembers what a cache has by its
	// address, and a later run may have another directory at the same port.
	prefix := "/" + rand.Text()
	handler := http.StripPrefix(prefix, c.Handler())
	r := &runCache{Cache: c, dir: dir, url: "http://" + l.Addr().String() + prefix, served: make(chan struct{})}
	r.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			req.Header.Set("Authorization", "Bearer "+token)
			handler.ServeHTTP(w, req)
		}),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(r.served)
		_ = r.server.Serve(l)
	}()
	return r, nil
}

// close ends the cache. The agent has ended already, so nobody has anything to ask.
func (r *runCache) close() {
	_ = r.server.Close()
	<-r.served
	_ = r.Cache.Close()
}

// binaryCaches is the agent's file for it.
func (r *runCache) binaryCaches() (string, error) {
	text, err := json.Marshal(map[string]any{"hci-run": map[string]any{
		"kind": "NixCache", "storeURI": r.url, "publicKeys": []string{r.PublicKey()}, "signingKeys": []string{},
	}})
	return string(text), err
}

// summary tells what the run did for the cache.
func (r *runCache) summary() string {
	s := r.Stats()
	return fmt.Sprintf("cache: %s: %d store paths, %d of them new, %.1f MiB", r.dir, s.Paths, s.Added, float64(s.Bytes)/(1<<20))
}

// distrusted says whether the Nix daemon does not let this user choose a cache, as far as it says.
func distrusted(ctx context.Context, nix string, settings map[string]string) bool {
	s, err := nixconf.Load(ctx, nix, settings)
	if err != nil {
		return false // The agent will say it.
	}
	store, err := localstore.Find(ctx, localstore.Options{Setting: s.Get})
	if err != nil {
		return false
	}
	c, err := daemon.Dial(ctx, store.Endpoint, daemon.Options{})
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	return c.Trusted() == daemon.NotTrusted
}
