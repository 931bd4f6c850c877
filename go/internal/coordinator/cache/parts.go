package cache

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"

	"hercules/internal/coordinator/cache/narfile"
	"hercules/internal/coordinator/cache/storage"
)

// apiPart takes the bytes of a part.
func (c *Cache) apiPart(w *recorder, r *http.Request, narID string) error {
	number, err := partNumber(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	expires, err := strconv.ParseInt(q.Get("expires"), 10, 64)
	mac := c.uploads.mac(narID, q.Get("uploadId"), number, q.Get("md5"), expires)
	if err != nil || !hmac.Equal([]byte(mac), []byte(q.Get("signature"))) {
		return fail(http.StatusForbidden, "this URL was not made by this server, or before it was started anew")
	}
	if c.now().Unix() > expires {
		return fail(http.StatusForbidden, "this URL has expired")
	}
	sum, err := hex.DecodeString(q.Get("md5"))
	if err != nil || len(sum) != md5.Size {
		return fail(http.StatusForbidden, "malformed URL")
	}
	if r.Header.Get("Content-MD5") != base64.StdEncoding.EncodeToString(sum) {
		return fail(http.StatusBadRequest, "Content-MD5 is not what was announced")
	}
	u, err := c.upload(r, narID)
	if err != nil {
		return err
	}
	switch {
	case r.ContentLength < 0:
		return fail(http.StatusLengthRequired, "the length is to be told")
	case r.ContentLength > c.o.MaxNarSize:
		return fail(http.StatusRequestEntityTooLarge, "the NAR is larger than %d bytes", c.o.MaxNarSize)
	}
	release, err := c.slot(r.Context())
	if err != nil {
		return err
	}
	defer release()
	p, err := c.readPart(r, [md5.Size]byte(sum))
	if err != nil {
		return err
	}
	if err := u.add(number, p, c.o.MaxNarSize, c.now()); err != nil {
		p.spool.Discard()
		return err
	}
	w.Header().Set("ETag", p.etag())
	w.WriteHeader(http.StatusOK)
	return nil
}

func (c *Cache) readPart(r *http.Request, sum [md5.Size]byte) (p *part, err error) {
	s, err := storage.NewSpool(c.tmp(), "part-", c.space)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Discard()
		}
	}()
	h := md5.New()
	if _, err := copyAll(io.MultiWriter(s, h), r.Body); err != nil {
		return nil, err
	}
	if [md5.Size]byte(h.Sum(nil)) != sum {
		return nil, fail(http.StatusBadRequest, "the part has another MD5 than was announced")
	}
	// Not flushed: an upload does not outlive the process anyway.
	if err := s.Finish(false); err != nil {
		return nil, err
	}
	return &part{spool: s, md5: sum}, nil
}

func (c *Cache) apiComplete(w *recorder, r *http.Request, narID string) error {
	var body completedUpload
	if err := readJSON(r, &body); err != nil {
		return err
	}
	if body.NarInfoCreate == nil || len(body.Parts) == 0 {
		return fail(http.StatusBadRequest, "want parts and narInfoCreate")
	}
	id := narID + " " + r.URL.Query().Get("uploadId")
	if c.uploads.wasDone(id, body.NarInfoCreate) {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	u, err := c.upload(r, narID)
	if err != nil {
		return err
	}
	release, err := c.slot(r.Context())
	if err != nil {
		return err
	}
	defer release()
	u.completing.Lock()
	defer u.completing.Unlock()
	if u.gone { // while we waited; perhaps by the client's own first try
		if c.uploads.wasDone(id, body.NarInfoCreate) {
			w.WriteHeader(http.StatusOK)
			return nil
		}
		return errNoUpload
	}
	// A client that gives up waiting finds it done when it asks again.
	if err := c.complete(context.WithoutCancel(r.Context()), u, &body); err != nil {
		// Wrong parameters and missing references can be put right. Wrong contents stay wrong, and what else can
		// happen may have happened to the parts too.
		if status := statusOf(err); status != http.StatusBadRequest && status != http.StatusFailedDependency {
			c.uploads.end(u)
		}
		return err
	}
	c.uploads.noteDone(id, body.NarInfoCreate)
	c.uploads.end(u)
	w.WriteHeader(http.StatusOK)
	return nil
}

// complete makes a NAR of the parts, and a path of the NAR.
func (c *Cache) complete(ctx context.Context, u *upload, body *completedUpload) error {
	n, err := c.narinfoOf(body.NarInfoCreate)
	if err != nil {
		return err
	}
	n.Compression = u.compression
	u.mu.Lock()
	f, err := u.nar, error(nil)
	var parts []*part
	if f == nil {
		if parts, err = u.inOrder(body.Parts); err == nil {
			u.closed = true
		}
	}
	u.mu.Unlock()
	if err != nil {
		return err
	}
	if f == nil {
		check := func(f narfile.Facts) error {
			if want, err := narFile(n); err != nil || want != f.File {
				return fail(http.StatusUnprocessableEntity, "cFileHash differs: the uploaded file has another one")
			}
			return compare(n, f)
		}
		made, err := c.join(ctx, parts, check)
		if err != nil {
			return err
		}
		u.mu.Lock()
		u.nar = &made
		u.removeParts()
		u.mu.Unlock()
	}
	return c.publish(ctx, n)
}

// join makes one file of parts and gives it to the storage.
func (c *Cache) join(ctx context.Context, parts []*part, check func(narfile.Facts) error) (narfile.Facts, error) {
	if len(parts) > 1 {
		r := &partsReader{parts: parts}
		defer r.close()
		return c.putNar(ctx, r, check)
	}
	// The only part is the file.
	s := parts[0].spool
	file, err := s.Reopen()
	if err != nil {
		return narfile.Facts{}, err
	}
	f, err := c.readNar(file, nil)
	if err != nil {
		return narfile.Facts{}, err
	}
	return f, c.keepNar(ctx, s, f, check)
}

// partsReader reads parts one after the other, with one file open at a time.
type partsReader struct {
	parts []*part
	f     *os.File
}

func (r *partsReader) Read(p []byte) (int, error) {
	for {
		if r.f == nil {
			if len(r.parts) == 0 {
				return 0, io.EOF
			}
			f, err := os.Open(r.parts[0].spool.Name())
			if err != nil {
				return 0, err
			}
			r.f, r.parts = f, r.parts[1:]
		}
		n, err := r.f.Read(p)
		if errors.Is(err, io.EOF) {
			r.close()
			err = nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (r *partsReader) close() {
	if r.f != nil {
		_ = r.f.Close()
		r.f = nil
	}
}

func statusOf(err error) int {
	if he, ok := errors.AsType[*httpError](err); ok {
		return he.status
	}
	return 0
}
