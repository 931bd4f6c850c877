// Package binarycache writes Nix binary caches: directories, servers that take PUT, and S3 buckets.
//
// An archive is compressed, hashed and put under the hash of its compressed form, as Nix does; the narinfo follows when the
// caller says so. Nothing that is interrupted looks complete.
//
// It knows neither the local store nor continuous integration.
package binarycache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/nix-community/go-nix/pkg/nixbase32"
	"golang.org/x/sync/errgroup"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/nar"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
	"hercules/internal/push/fault"
	"hercules/internal/push/pack"
)

// Options of [Open].
type Options struct {
	// Client for HTTP and S3.
	Client *http.Client
	// Credentials for a host of HTTP, for a URL that has none; nil: there are none.
	Credentials func(host string) *url.Userinfo
	Packer      *pack.Packer
	// Compression and Level overrule the URI where they are set.
	Compression string
	Level       int
	// TempDir is for files that are compressed before they are sent; empty is the system's.
	TempDir string
	Policy  fault.Policy
	Log     *slog.Logger
}

// storage is where the files of a cache are. It is safe for concurrent use.
type storage interface {
	open(context.Context) error
	// has tells whether there is a file; of a narinfo, as far as that is cheap, also whether its archive is there.
	has(ctx context.Context, name string) (bool, error)
	// get gives a small file, nil if it is not there.
	get(ctx context.Context, name string) ([]byte, error)
	// put makes a file in one step.
	put(ctx context.Context, name, contentType string, s *spool) error
	// spool begins a file, discard ends it, whether it was put or not.
	spool() *spool
	discard(s *spool)
	close()
}

// Cache is a binary cache to be written. It is safe for concurrent use.
type Cache struct {
	store  storage
	params params
	packer *pack.Packer
	keys   []string

	lock  chan struct{} // of ready; a channel, because whoever waits may have to leave
	ready bool
}

// Kinds of URI that are written without Nix.
func schemes(uri string) string {
	for _, s := range []string{"file", "http", "https", "s3"} {
		if strings.HasPrefix(uri, s+"://") {
			return s
		}
	}
	return ""
}

// Open prepares a cache of a store URI of Nix; it does not ask the cache. The error is [ErrUnsupported] for one that only Nix itself
// can write. Errors do not have the URI, which may have a password.
func Open(uri string, o Options) (*Cache, error) {
	if o.Client == nil {
		o.Client = http.DefaultClient
	}
	c := &Cache{packer: o.Packer, lock: make(chan struct{}, 1)}
	var q url.Values
	switch schemes(uri) {
	case "file":
		path, query, _ := strings.Cut(strings.TrimPrefix(uri, "file://"), "?")
		if !strings.HasPrefix(path, "/") {
			return nil, errors.New("file:// needs an absolute path")
		}
		var err error
		if q, err = url.ParseQuery(query); err != nil {
			return nil, err
		}
		if path, err = url.PathUnescape(path); err != nil {
			return nil, err
		}
		c.store = dir(path)
	case "http", "https":
		base, user, query, err := parseHTTP(uri)
		if err != nil {
			return nil, err
		}
		if user == nil && o.Credentials != nil {
			u, _ := url.Parse(base)
			user = o.Credentials(u.Hostname())
		}
		c.store, q = &server{client: o.Client, base: base, user: user, policy: o.Policy, tmp: o.TempDir}, query
	case "s3":
		b, query, err := openS3(uri, o)
		if err != nil {
			return nil, err
		}
		c.store, q = b, query
	default:
		return nil, ErrUnsupported
	}
	var err error
	if c.params, err = parseParams(q); err != nil {
		return nil, err
	}
	if o.Compression != "" {
		c.params.compression.Method, c.params.compression.Level = o.Compression, 0
	}
	if o.Level != 0 {
		c.params.compression.Level = o.Level
	}
	switch c.params.compression.Method {
	case pack.None, pack.Zstd, pack.XZ, pack.Gzip:
	default:
		return nil, fmt.Errorf("%w: compression %s", ErrUnsupported, c.params.compression.Method)
	}
	if err := c.params.compression.Check(); err != nil {
		return nil, err
	}
	for _, f := range c.params.secretKeys {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("secret-key: %w", err)
		}
		c.keys = append(c.keys, string(text))
	}
	if c.params.debugInfo && o.Log != nil {
		o.Log.Info("an index of debug information is not written (index-debug-info)")
	}
	return c, nil
}

// Keys are the signing keys that the URI names by their files.
func (c *Cache) Keys() []string { return c.keys }

// Close lets go of what the cache has open.
func (c *Cache) Close() { c.store.close() }

// prepare makes sure that the cache says of itself what it is, without which Nix does not read it.
func (c *Cache) prepare(ctx context.Context) error {
	select {
	case c.lock <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-c.lock }()
	if c.ready {
		return nil
	}
	if err := c.store.open(ctx); err != nil {
		return err
	}
	const name = "nix-cache-info"
	text, err := c.store.get(ctx, name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if text == nil {
		s := "StoreDir: " + storepath.StoreDir + "\nWantMassQuery: "
		switch c.params.wantMassQuery {
		case "false", "0", "no":
			s += "0\n"
		default:
			s += "1\n"
		}
		if c.params.priority != "" {
			s += "Priority: " + c.params.priority + "\n"
		}
		if err := c.put(ctx, name, "text/x-nix-cache-info", []byte(s)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	} else if dir, ok := storeDir(text); ok && dir != storepath.StoreDir {
		return fmt.Errorf("the cache is for the store directory %s, not %s", dir, storepath.StoreDir)
	}
	c.ready = true
	return nil
}

func storeDir(info []byte) (string, bool) {
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, "StoreDir:"); ok {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

func (c *Cache) put(ctx context.Context, name, contentType string, text []byte) error {
	s := content(text)
	return c.store.put(ctx, name, contentType, s)
}

// questions is how many narinfos are asked for at once.
const questions = 32

// Missing gives those of the paths that the cache lacks.
func (c *Cache) Missing(ctx context.Context, paths []string) ([]string, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	if err := c.prepare(ctx); err != nil {
		return nil, err
	}
	lacks := make([]bool, len(paths))
	next := make(chan int)
	g, gctx := errgroup.WithContext(ctx)
	for range min(questions, len(paths)) {
		g.Go(func() error {
			for i := range next {
				there, err := c.store.has(gctx, storepath.HashPart(paths[i])+".narinfo")
				if err != nil {
					return fmt.Errorf("asking for %s: %w", paths[i], err)
				}
				lacks[i] = !there
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(next)
		for i := range paths {
			select {
			case next <- i:
			case <-gctx.Done():
				return nil
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	var missing []string
	for i, path := range paths {
		if lacks[i] {
			missing = append(missing, path)
		}
	}
	return missing, nil
}

// Upload puts the archive that src writes into the cache. Check is asked before anything is sent whether that is the archive of
// the path. The path is visible after commit. Sent is the number of bytes of the compressed archive.
func (c *Cache) Upload(ctx context.Context, info *daemon.PathInfo, src func(io.Writer) error, check func(pack.Result) error) (
	commit func(context.Context) error, sent uint64, err error,
) {
	if err := c.prepare(ctx); err != nil {
		return nil, 0, err
	}
	file := c.store.spool()
	defer c.store.discard(file)
	source, listing := src, func() (*nar.Node, error) { return nil, nil }
	if c.params.writeListing {
		source, listing = listed(src)
	}
	result, err := c.packer.Pack(ctx, c.params.compression, info.NarSize, file, source)
	root, listErr := listing()
	if err != nil {
		return nil, 0, err
	}
	if err := errors.Join(check(result), listErr); err != nil {
		return nil, 0, err
	}
	hash := nixbase32.EncodeToString(result.FileHash[:])
	name := "nar/" + hash + ".nar" + c.params.compression.Extension()
	if err := c.store.put(ctx, name, "application/x-nix-nar", file); err != nil {
		return nil, 0, err
	}
	part := storepath.HashPart(info.Path)
	if root != nil {
		if err := c.put(ctx, part+".ls", "application/json", nar.Listing(root)); err != nil {
			return nil, 0, err
		}
	}
	n := narinfo.NarInfo{
		StorePath: info.Path, URL: name, Compression: c.params.compression.Method,
		FileHash: "sha256:" + hash, FileSize: result.FileSize, NarHash: info.NarHash, NarSize: info.NarSize,
		References: info.References, Deriver: info.Deriver, Sigs: info.Signatures, CA: info.ContentAddress,
	}
	return func(ctx context.Context) error {
		return c.put(ctx, part+".narinfo", "text/x-nix-narinfo", n.Append(nil))
	}, result.FileSize, nil
}

// listed looks into an archive while it passes. The second function waits for the result.
func listed(src func(io.Writer) error) (func(io.Writer) error, func() (*nar.Node, error)) {
	r, w := io.Pipe()
	type answer struct {
		node *nar.Node
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		n, err := nar.List(r)
		_ = r.CloseWithError(err)
		done <- answer{n, err}
	}()
	return func(to io.Writer) error {
			err := src(io.MultiWriter(to, w))
			_ = w.CloseWithError(err)
			return err
		}, func() (*nar.Node, error) {
			_ = w.CloseWithError(io.ErrUnexpectedEOF) // in case that the source was never read
			a := <-done
			return a.node, a.err
		}
}
