package cachix

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"hercules/internal/push/fault"
)

// Limits of parts: those of S3.
const (
	maxParts = 10000
	minPart  = 5 << 20
)

// smallUpload is below what counts for the bound on memory.
const smallUpload = 256 << 10

// Upload is an archive on its way. Write sends it part by part, each while the next is filled; memory does not grow with it.
//
// Write, Flush and Complete come in this order; Abort instead of, or after a failed, Complete.
type Upload struct {
	c        *Client
	ctx      context.Context //nolint:containedctx // of the parts
	cancel   context.CancelCauseFunc
	narID    string
	uploadID string
	partSize int

	fill  []byte
	token bool
	count int
	wg    sync.WaitGroup

	mu    sync.Mutex
	parts []Part
}

// Start begins an upload. Compression is "xz" or "zst"; size is at least about as much as will come.
func (c *Client) Start(ctx context.Context, compression string, size uint64) (*Upload, error) {
	u := &Upload{c: c, partSize: c.part}
	// An incompressible archive may become a little larger.
	if need := (size + size/64) / (maxParts - 1); need > uint64(u.partSize) {
		u.partSize = int(min(need, 5<<30))
	}
	var created struct {
		NarID    string `json:"narId"`
		UploadID string `json:"uploadId"`
	}
	err := c.call(ctx, http.MethodPost, "/multipart-nar", url.Values{"compression": {compression}}, nil, &created, requestLimit)
	if err != nil {
		return nil, err
	}
	if created.NarID == "" || created.UploadID == "" {
		return nil, errors.New("the service began an upload without a name")
	}
	u.narID, u.uploadID = created.NarID, created.UploadID
	u.ctx, u.cancel = context.WithCancelCause(ctx)
	return u, nil
}

func (u *Upload) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		if err := u.room(len(b)); err != nil {
			return 0, err
		}
		k := min(len(b), u.partSize-len(u.fill))
		u.fill = append(u.fill, b[:k]...)
		b = b[k:]
	}
	return n, nil
}

// room makes room for at least one byte, of n that wait.
func (u *Upload) room(n int) error {
	if len(u.fill) >= u.partSize {
		u.send()
	}
	if u.token || len(u.fill)+n <= smallUpload {
		return u.failed()
	}
	select {
	case u.c.buffers <- struct{}{}:
	case <-u.ctx.Done():
		return u.failed()
	}
	u.token = true
	u.fill = slices.Grow(u.fill, min(u.partSize, max(n, 1<<20))-len(u.fill))
	return nil
}

func (u *Upload) failed() error {
	if u.ctx.Err() != nil {
		return context.Cause(u.ctx)
	}
	return nil
}

// send sends the present part on its way.
func (u *Upload) send() {
	data, token := u.fill, u.token
	u.fill, u.token = nil, false
	u.count++
	number := u.count
	u.wg.Go(func() {
		tag, err := u.part(number, data)
		if token {
			<-u.c.buffers
		}
		if err != nil {
			u.cancel(fmt.Errorf("part %d: %w", number, err))
			return
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.parts = append(u.parts, Part{number, tag})
	})
}

// Flush sends what is left and waits until all parts have arrived.
func (u *Upload) Flush() error {
	if len(u.fill) > 0 || u.count == 0 {
		u.send()
	}
	u.wg.Wait()
	if err := u.failed(); err != nil {
		return err
	}
	slices.SortFunc(u.parts, func(a, b Part) int { return a.Number - b.Number })
	if u.count > maxParts {
		return fmt.Errorf("%d parts, more than %d", u.count, maxParts)
	}
	return nil
}

// part sends one part. Every attempt gets a new address: they expire.
func (u *Upload) part(number int, data []byte) (tag string, err error) {
	sum := md5.Sum(data)
	digest := base64.StdEncoding.EncodeToString(sum[:])
	renewed := false
	err = fault.Retry(u.ctx, u.c.policy, func(ctx context.Context) error {
		var answer struct {
			URL string `json:"uploadUrl"`
		}
		err := u.c.call(ctx, http.MethodPost, "/multipart-nar/"+url.PathEscape(u.narID), u.query(number),
			map[string]string{"contentMD5": digest}, &answer, requestLimit)
		if err != nil {
			return fault.Finally(err)
		}
		tag, err = u.put(ctx, answer.URL, digest, data)
		if status := fault.StatusOf(err); status/100 == 4 && fault.KindOf(err) != fault.Transient && !renewed {
			renewed = true
			return fault.As(fault.Transient, err)
		}
		return err
	})
	return tag, err
}

func (u *Upload) put(parent context.Context, address, digest string, data []byte) (tag string, err error) {
	ctx, watch := fault.NewWatch(parent, idleLimit)
	defer watch.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, address, watch.Reader(bytes.NewReader(data)))
	if err != nil {
		return "", errors.New("the service gave an address that is none")
	}
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return "", errors.New("the service gave an address that is not of HTTP")
	}
	req.ContentLength = int64(len(data))
	if len(data) == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("Content-MD5", digest)
	// No token: the address itself is the permission, and the host may be another one.
	resp, err := u.c.http.Do(req)
	if err != nil {
		return "", fault.Sent(ctx, err)
	}
	defer fault.Drain(resp.Body)
	if resp.StatusCode/100 != 2 {
		return "", fault.Status(resp)
	}
	if tag = resp.Header.Get("ETag"); tag == "" {
		return "", errors.New("the storage service answered without an ETag")
	}
	return tag, nil
}

// Complete makes the path of the archive visible.
func (u *Upload) Complete(ctx context.Context, n *NarInfo) error {
	err := u.c.call(ctx, http.MethodPost, "/multipart-nar/"+url.PathEscape(u.narID)+"/complete", u.query(0), struct {
		Parts   []Part   `json:"parts"`
		NarInfo *NarInfo `json:"narInfoCreate"`
	}{u.parts, n}, nil, completeLimit)
	if status := fault.StatusOf(err); status/100 == 4 && fault.KindOf(err) == fault.Permanent {
		// The answer to a former attempt may have been lost, and a repeated one refused.
		if there, askErr := u.c.has(ctx, n.StoreHash); askErr == nil && there {
			err = nil
		}
	}
	if err == nil {
		u.cancel(nil)
	}
	return err
}

// Abort gives up an upload that is not completed. The service is told if it can be reached at once; it forgets the parts by
// itself sooner or later.
func (u *Upload) Abort(cause error) {
	u.cancel(cause)
	u.wg.Wait()
	if u.token {
		<-u.c.buffers
		u.token = false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.ctx), 10*time.Second)
	defer cancel()
	once := *u.c
	once.policy = fault.Policy{First: time.Millisecond}
	_ = once.call(ctx, http.MethodPost, "/multipart-nar/"+url.PathEscape(u.narID)+"/abort", u.query(0), nil, nil, requestLimit)
}
