package cache

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
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
