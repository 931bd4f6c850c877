package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"hercules/internal/coordinator/cache/narfile"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
)

// validHash tells whether a text can be the hash part of a store path.
func validHash(s string) bool {
	_, err := storepath.ParseBase(s + "-x")
	return len(s) == storepath.HashLen && err == nil
}

// routePlain serves the protocol of Nix's binary caches.
func (c *Cache) routePlain(w *recorder, r *http.Request, path string) error {
	put := false
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if err := c.require(r, mayRead); err != nil {
			return err
		}
	case http.MethodPut:
		if err := c.require(r, mayWrite); err != nil {
			return err
		}
		put = true
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT")
		return fail(http.StatusMethodNotAllowed, "method not allowed")
	}
	kind, isSmall := smallFile(path)
	nar, isNar := strings.CutPrefix(path, "nar/")
	hash, isInfo := strings.CutSuffix(path, narinfoExt)
	switch {
	case path == "nix-cache-info" && put:
		return c.putInfo(w, r)
	case path == "nix-cache-info":
		return c.getBytes(w, r, "text/x-nix-cache-info", c.info())
	case isInfo && validHash(hash) && put:
		return c.putNarinfo(w, r, hash)
	case isInfo && validHash(hash):
		return c.getNarinfo(w, r, hash)
	case isNar && put:
		return c.putPlainNar(w, r, nar)
	case isNar:
		return c.getNar(w, r, nar)
	case isSmall && put:
		return c.putSmall(w, r, path, kind)
	case isSmall:
		return c.getSmall(w, r, path, kind)
	case put:
		return fail(http.StatusForbidden, "this is not a file of a binary cache")
	}
	return fail(http.StatusNotFound, "not found")
}

// cacheFor says how long others may keep a response.
func (c *Cache) cacheFor(w http.ResponseWriter, how string) {
	who := "private, "
	if c.o.Public {
		who = "public, "
	}
	w.Header().Set("Cache-Control", who+how)
}

// getBytes serves a small thing; its ETag is its content.
func (c *Cache) getBytes(w *recorder, r *http.Request, contentType string, data []byte) error {
	sum := sha256.Sum256(data)
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:16])+`"`)
	// Signatures come later, and paths go.
	c.cacheFor(w, "max-age=3600")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	return nil
}

func (c *Cache) getNarinfo(w *recorder, r *http.Request, hash string) error {
	st, err := c.storage.Stat(r.Context(), narinfoKey(hash))
	if errors.Is(err, fs.ErrNotExist) {
		c.count.misses.Add(1)
	}
	if err != nil {
		return err
	}
	data, err := c.readAll(r.Context(), st.Key, narinfo.MaxSize+maxSigs*256)
	if err != nil {
		return err
	}
	c.count.hits.Add(1)
	c.touch(r.Context(), st)
	return c.getBytes(w, r, "text/x-nix-narinfo", data)
}

func (c *Cache) getNar(w *recorder, r *http.Request, name string) error {
	file, err := narfile.ParseName(name)
	if err != nil {
		return fail(http.StatusNotFound, "not found")
	}
	st, err := c.findNar(r.Context(), file)
	if err != nil {
		return err
	}
	f, _, err := c.storage.Open(r.Context(), st.Key)
	if err != nil {
		return err
	}
	defer f.Close()
	if r.Method == http.MethodHead { // a push is about to leave it out
		c.mark(r.Context(), st.Key)
	} else {
		c.touch(r.Context(), st)
	}
	w.Header().Set("Content-Type", "application/x-nix-nar")
	w.Header().Set("ETag", `"`+file.String()+`"`)
	c.cacheFor(w, "max-age=31536000, immutable")
	http.ServeContent(w, r, "", time.Time{}, f)
	return nil
}

// putInfo answers Nix, which writes nix-cache-info into a cache that it thinks is new. The cache's own stays.
func (c *Cache) putInfo(w *recorder, r *http.Request) error {
	data, err := readBody(r, 64<<10)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if dir, ok := strings.CutPrefix(line, "StoreDir:"); ok && strings.TrimSpace(dir) != storepath.StoreDir {
			return fail(http.StatusConflict, "this cache is for the store directory %s", storepath.StoreDir)
		}
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (c *Cache) putNarinfo(w *recorder, r *http.Request, hash string) error {
	release, err := c.slot(r.Context())
	if err != nil {
		return err
	}
	defer release()
	body, err := decodeBody(r, narinfo.MaxSize)
	if err != nil {
		return err
	}
	n, err := narinfo.Parse(body)
	if err != nil {
		return fail(http.StatusBadRequest, "%s", err)
	}
	if storepath.HashPart(n.StorePath) != hash {
		return fail(http.StatusBadRequest, "the narinfo of %s does not belong here", n.StorePath)
	}
	if err := c.publish(r.Context(), n); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// putPlainNar takes a NAR. Nix names it after its file; one named after its contents is taken too, so that it can be
// sent while it is being compressed, and is found under its file's hash afterwards.
func (c *Cache) putPlainNar(w *recorder, r *http.Request, name string) error {
	want, err := narName(name)
	if err != nil {
		return err
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return fail(http.StatusUnsupportedMediaType, "a NAR has no content encoding")
	}
	body, err := c.narBody(r)
	if err != nil {
		return err
	}
	release, err := c.slot(r.Context())
	if err != nil {
		return err
	}
	defer release()
	if st, err := c.findNar(r.Context(), want); err == nil {
		// Known by its hash: what comes is compared and not kept.
		if err := sameFile(body, want); err != nil {
			return err
		}
		c.mark(r.Context(), st.Key)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	} else if _, err := c.putNar(r.Context(), body, func(f narfile.Facts) error {
		if want != f.File && want != f.Nar {
			return fail(http.StatusUnprocessableEntity, "the file has the hash %s, not the one it is named after", f.File)
		}
		return nil
	}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// narBody is the request's body, not longer than a NAR may be.
func (c *Cache) narBody(r *http.Request) (io.Reader, error) {
	limit := c.o.MaxNarSize + 1<<20 // what does not compress grows a little
	if r.ContentLength > limit {
		return nil, fail(http.StatusRequestEntityTooLarge, "the NAR is larger than %d bytes", c.o.MaxNarSize)
	}
	return &limited{r: r.Body, left: limit, max: c.o.MaxNarSize}, nil
}

// limited is a reader for which too much is an error.
type limited struct {
	r         io.Reader
	left, max int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, fail(http.StatusRequestEntityTooLarge, "the NAR is larger than %d bytes", l.max)
	}
	return n, err
}

func sameFile(body io.Reader, want narfile.Digest) error {
	h := sha256.New()
	if _, err := copyAll(h, body); err != nil {
		return err
	}
	if narfile.Digest(h.Sum(nil)) != want {
		return fail(http.StatusUnprocessableEntity, "the file has another hash than the one it is named after")
	}
	return nil
}
