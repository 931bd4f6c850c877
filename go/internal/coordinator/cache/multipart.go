package cache

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"hercules/internal/coordinator/cache/narfile"
	"hercules/internal/coordinator/cache/storage"
)

const (
	// maxParts and minPart are S3's, which clients count on (docs/cachix-protocol.md, section 5).
	maxParts = 10_000
	minPart  = 5 << 20

	maxUploads   = 10_000         // that are not complete
	uploadExpiry = 24 * time.Hour // without a sign of life
	ticketExpiry = time.Hour
	// donesKept is how many completed uploads are remembered, for the client that missed the answer.
	donesKept = 10_000
)

// uploads are the multipart uploads on their way. They do not outlive the process: their clients begin again.
type uploads struct {
	mu     sync.Mutex
	secret [32]byte // signs the URLs of parts
	open   map[string]*upload
	done   map[string]*narInfoCreate // by narId and uploadId
	dones  []string                  // the keys of done, oldest first
}

// upload is one of them.
type upload struct {
	narID, uploadID, compression string

	// completing is held by whoever completes or drops it.
	completing sync.Mutex
	gone       bool // under completing

	mu      sync.Mutex
	touched time.Time
	closed  bool // no more parts
	parts   map[int]*part
	nar     *narfile.Facts // what the parts turned out to be; they are gone then
}

type part struct {
	spool *storage.Spool
	md5   [md5.Size]byte
}

func (p *part) etag() string { return `"` + hex.EncodeToString(p.md5[:]) + `"` }

func (us *uploads) init() {
	_, _ = rand.Read(us.secret[:]) // never fails
	us.open = map[string]*upload{}
	us.done = map[string]*narInfoCreate{}
}

func (us *uploads) len() int {
	us.mu.Lock()
	defer us.mu.Unlock()
	return len(us.open)
}

func (us *uploads) create(c *Cache, compression string) (*upload, error) {
	now := c.now()
	us.expire(c, now)
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	u := &upload{
		narID: uuid.NewString(), uploadID: hex.EncodeToString(id), compression: compression,
		touched: now, parts: map[int]*part{},
	}
	us.mu.Lock()
	defer us.mu.Unlock()
	if len(us.open) >= maxUploads {
		return nil, fail(http.StatusServiceUnavailable, "too many uploads that are not complete")
	}
	us.open[u.narID] = u
	return u, nil
}

var errNoUpload = fail(http.StatusNotFound, "there is no such upload: it is finished, or the server has forgotten it")

func (us *uploads) get(narID, uploadID string, now time.Time) (*upload, error) {
	us.mu.Lock()
	u := us.open[narID]
	us.mu.Unlock()
	if u == nil || subtle.ConstantTimeCompare([]byte(u.uploadID), []byte(uploadID)) != 1 {
		return nil, errNoUpload
	}
	u.mu.Lock()
	u.touched = now
	u.mu.Unlock()
	return u, nil
}

// expire drops uploads that nobody has touched for long.
func (us *uploads) expire(c *Cache, now time.Time) {
	us.mu.Lock()
	var old []*upload
	for _, u := range us.open {
		u.mu.Lock()
		if now.Sub(u.touched) > uploadExpiry {
			old = append(old, u)
		}
		u.mu.Unlock()
	}
	us.mu.Unlock()
	for _, u := range old {
		if u.completing.TryLock() { // else it is not dead
			c.log.Info("dropping an upload that was never completed", "narId", u.narID)
			us.end(u)
			u.completing.Unlock()
		}
	}
}

// drop ends an upload and removes its parts.
func (us *uploads) drop(u *upload) error {
	u.completing.Lock()
	defer u.completing.Unlock()
	if u.gone {
		return errNoUpload
	}
	us.end(u)
	return nil
}

// end is drop for the one who holds completing.
func (us *uploads) end(u *upload) {
	u.gone = true
	us.mu.Lock()
	delete(us.open, u.narID)
	us.mu.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	u.removeParts()
}

func (us *uploads) dropAll() {
	us.mu.Lock()
	var all []*upload
	for _, u := range us.open {
		all = append(all, u)
	}
	us.mu.Unlock()
	for _, u := range all {
		_ = us.drop(u)
	}
}

func (u *upload) removeParts() {
	for _, p := range u.parts {
		p.spool.Discard()
	}
	clear(u.parts)
}

// ticket is the query of a part's URL; it says all about the part, and that we have said it.
func (us *uploads) ticket(u *upload, number int, sum []byte, now time.Time) string {
	expires := now.Add(ticketExpiry).Unix()
	return url.Values{
		"uploadId":   {u.uploadID},
		"partNumber": {strconv.Itoa(number)},
		"md5":        {hex.EncodeToString(sum)},
		"expires":    {strconv.FormatInt(expires, 10)},
		"signature":  {us.mac(u.narID, u.uploadID, number, hex.EncodeToString(sum), expires)},
	}.Encode()
}

func (us *uploads) mac(narID, uploadID string, number int, sum string, expires int64) string {
	h := hmac.New(sha256.New, us.secret[:])
	fmt.Fprintf(h, "%s %s %d %s %d", narID, uploadID, number, sum, expires)
	return hex.EncodeToString(h.Sum(nil))
}

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

// add puts a part in its place; a former one of its number is gone.
func (u *upload) add(number int, p *part, limit int64, now time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return fail(http.StatusConflict, "the upload is being completed or finished")
	}
	total := p.spool.Size()
	for n, other := range u.parts {
		if n != number {
			total += other.spool.Size()
		}
	}
	if total > limit+1<<20 {
		return fail(http.StatusRequestEntityTooLarge, "the NAR is larger than %d bytes", limit)
	}
	if old := u.parts[number]; old != nil {
		old.spool.Discard()
	}
	u.parts[number] = p
	u.touched = now
	return nil
}

// inOrder checks a client's list of parts against those that came.
func (u *upload) inOrder(list []completedPart) ([]*part, error) {
	var parts []*part
	last := 0
	for i, l := range list {
		p := u.parts[l.PartNumber]
		switch {
		case l.PartNumber <= last:
			return nil, fail(http.StatusBadRequest, "parts: number %d after %d", l.PartNumber, last)
		case p == nil:
			return nil, fail(http.StatusBadRequest, "parts: number %d was not uploaded", l.PartNumber)
		case strings.Trim(l.ETag, `"`) != strings.Trim(p.etag(), `"`):
			return nil, fail(http.StatusBadRequest, "parts: number %d has another ETag", l.PartNumber)
		case i < len(list)-1 && p.spool.Size() < minPart:
			return nil, fail(http.StatusBadRequest, "parts: number %d has less than %d bytes and is not the last", l.PartNumber, minPart)
		}
		last = l.PartNumber
		parts = append(parts, p)
	}
	if len(parts) != len(u.parts) {
		return nil, fail(http.StatusBadRequest, "parts: %d of %d that were uploaded", len(parts), len(u.parts))
	}
	return parts, nil
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

func (us *uploads) wasDone(id string, create *narInfoCreate) bool {
	us.mu.Lock()
	defer us.mu.Unlock()
	done := us.done[id]
	return done != nil && reflect.DeepEqual(done, create)
}

func (us *uploads) noteDone(id string, create *narInfoCreate) {
	us.mu.Lock()
	defer us.mu.Unlock()
	us.done[id] = create
	us.dones = append(us.dones, id)
	if len(us.dones) > donesKept {
		delete(us.done, us.dones[0])
		us.dones = slices.Delete(us.dones, 0, 1)
	}
}
