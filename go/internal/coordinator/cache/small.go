package cache

import (
	"compress/bzip2"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"regexp"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"

	"hercules/internal/coordinator/cache/narfile"
	"hercules/internal/coordinator/cache/storage"
	"hercules/internal/nix/storepath"
)

// Sizes of small files.
const (
	maxListing     = 256 << 20
	maxLog         = 256 << 20
	maxRealisation = 1 << 20
)

// small is a kind of file that is kept as it comes, besides narinfos and NARs.
type small struct {
	contentType string
	limit       int64
	json        bool
}

var (
	listing     = small{"application/json", maxListing, true}
	buildLog    = small{"text/plain; charset=utf-8", maxLog, false}
	realisation = small{"application/json", maxRealisation, true}
)

// Names of realisations: realisations/sha256:<hash>!<output>.doi, and build-trace-v2/<derivation>/<output>.doi of newer
// Nixes.
var (
	realisationName = regexp.MustCompile(`^sha256:[0-9a-f]{64}![a-zA-Z0-9+._?=-]{1,211}\.doi$`)
	outputName      = regexp.MustCompile(`^[a-zA-Z0-9+_?=-][a-zA-Z0-9+._?=-]{0,210}\.doi$`)
)

// smallFile tells which paths are small files; the path is the key as well.
func smallFile(path string) (small, bool) {
	dir, name, _ := strings.Cut(path, "/")
	switch {
	case name == "" && strings.HasSuffix(path, ".ls"):
		return listing, validHash(strings.TrimSuffix(path, ".ls"))
	case dir == "log":
		_, err := storepath.ParseBase(name)
		return buildLog, err == nil
	case dir == "realisations":
		return realisation, realisationName.MatchString(name)
	case dir == "build-trace-v2":
		drv, output, _ := strings.Cut(name, "/")
		_, err := storepath.ParseBase(drv)
		return realisation, err == nil && outputName.MatchString(output)
	}
	return small{}, false
}

func (c *Cache) getSmall(w *recorder, r *http.Request, key string, kind small) error {
	f, st, err := c.storage.Open(r.Context(), key)
	if err != nil {
		return err
	}
	defer f.Close()
	c.touch(r.Context(), st)
	w.Header().Set("Content-Type", kind.contentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	c.cacheFor(w, "max-age=3600")
	http.ServeContent(w, r, "", st.Time, f)
	return nil
}

func (c *Cache) putSmall(w *recorder, r *http.Request, key string, kind small) error {
	release, err := c.slot(r.Context())
	if err != nil {
		return err
	}
	defer release()
	s, err := storage.NewSpool(c.tmp(), "small-", c.space)
	if err != nil {
		return err
	}
	defer s.Discard()
	body, done, err := decode(r)
	if err != nil {
		return err
	}
	defer done()
	n, err := io.Copy(s, io.LimitReader(body, kind.limit+1))
	if err != nil {
		return bodyFault(err)
	}
	if n > kind.limit {
		return fail(http.StatusRequestEntityTooLarge, "larger than %d bytes", kind.limit)
	}
	if kind.json {
		if err := checkJSON(s); err != nil {
			return err
		}
	}
	if err := s.Finish(!c.o.NoSync); err != nil {
		return err
	}
	return c.keepSmall(w, r.Context(), key, s)
}

func (c *Cache) keepSmall(w *recorder, ctx context.Context, key string, s *storage.Spool) error {
	c.publishing.RLock()
	defer c.publishing.RUnlock()
	defer c.lockPath([]byte(key)...)()
	var before int64
	if old, err := c.storage.Stat(ctx, key); err == nil {
		before = old.Size
	}
	size := s.Size()
	if err := c.storage.Put(ctx, key, s.HandOver()); err != nil {
		c.space.Give(size)
		return err
	}
	c.space.Give(before)
	w.WriteHeader(http.StatusOK)
	return nil
}

// checkJSON reads a spooled file as one JSON object, with constant memory.
func checkJSON(s *storage.Spool) error {
	file, err := s.Rewind()
	if err != nil {
		return err
	}
	d := json.NewDecoder(file)
	depth := 0
	for first := true; ; first = false {
		t, err := d.Token()
		if errors.Is(err, io.EOF) && !first && depth == 0 {
			return nil
		}
		if err != nil {
			return fail(http.StatusBadRequest, "not well-formed JSON: %s", err)
		}
		if first && t != json.Delim('{') || !first && depth == 0 {
			return fail(http.StatusBadRequest, "want one JSON object")
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

// decode undoes the content encoding that Nix's narinfo-compression, ls-compression and log-compression make.
func decode(r *http.Request) (body io.Reader, done func(), err error) {
	done = func() {}
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
		return r.Body, done, nil
	case "gzip":
		body, err = gzip.NewReader(r.Body)
	case "xz":
		body, err = xz.NewReader(r.Body, narfile.MaxWindow)
	case "bzip2":
		body = bzip2.NewReader(r.Body)
	case "zstd":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(r.Body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(narfile.MaxWindow)); err == nil {
			body, done = d, d.Close
		}
	default:
		return nil, nil, fail(http.StatusUnsupportedMediaType, "content encoding %q: want none, gzip, zstd, xz or bzip2", encoding)
	}
	if err != nil {
		return nil, nil, bodyFault(err)
	}
	return body, done, nil
}

// bodyFault makes what a decompressor says of a body the client's fault. Errors of the disk stay what they are.
func bodyFault(err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); ok || isHTTPError(err) || storage.IsNoSpace(err) {
		return err
	}
	return &bodyError{err}
}

func decodeBody(r *http.Request, limit int64) ([]byte, error) {
	body, done, err := decode(r)
	if err != nil {
		return nil, err
	}
	defer done()
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, bodyFault(err)
	}
	if int64(len(data)) > limit {
		return nil, fail(http.StatusRequestEntityTooLarge, "larger than %d bytes", limit)
	}
	return data, nil
}
