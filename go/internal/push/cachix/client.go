// Package cachix is a client of the Cachix push protocol, as docs/cachix-protocol.md has it.
//
// It knows HTTP and narinfos, and neither the local store nor continuous integration.
package cachix

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"hercules/internal/push/fault"
)

// PublicService is the address of the public Cachix.
const PublicService = "https://cachix.org"

const (
	// requestLimit bounds requests without much of a body; completeLimit the one with which a server checks an archive.
	requestLimit  = 60 * time.Second
	completeLimit = 10 * time.Minute
	// idleLimit is for how long a part may stand still.
	idleLimit = 2 * time.Minute
	// maxHashes in one question: the service takes 1 MB.
	maxHashes = 25000
	maxAnswer = 4 << 20
)

// Options of [New].
type Options struct {
	// BaseURL is the part before /api/v1; empty is the public service.
	BaseURL string
	Name    string
	Token   string // may be empty
	Client  *http.Client
	Policy  fault.Policy
	// PartSize of uploads; 0 is 8 MiB. S3 wants 5 MiB at least.
	PartSize int
	// Buffers is how many parts may be in memory at once, over all uploads; 0 is 8.
	Buffers int
}

// Client of one cache. It is safe for concurrent use.
type Client struct {
	base    string
	name    string
	token   string
	http    *http.Client
	policy  fault.Policy
	part    int
	buffers chan struct{}
}

// New makes a client; it does not ask the service.
func New(o Options) (*Client, error) {
	if o.BaseURL == "" {
		o.BaseURL = PublicService
	}
	u, err := url.Parse(o.BaseURL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("apiBaseUrl: a URL that begins with https:// or http:// is expected")
	}
	if u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, errors.New("apiBaseUrl: a URL without user, query and fragment is expected")
	}
	c := &Client{
		base: strings.TrimRight(u.String(), "/") + "/api/v1/cache/" + url.PathEscape(o.Name),
		name: o.Name, token: o.Token, http: o.Client, policy: o.Policy, part: o.PartSize,
	}
	if c.http == nil {
		c.http = http.DefaultClient
	}
	if c.part == 0 {
		c.part = 8 << 20
	}
	if o.Buffers == 0 {
		o.Buffers = 8
	}
	c.buffers = make(chan struct{}, o.Buffers)
	return c, nil
}

// BinaryCache is what the service says of a cache. Members that are not needed are left out.
type BinaryCache struct {
	Name              string   `json:"name"`
	URI               string   `json:"uri"`
	IsPublic          bool     `json:"isPublic"`
	PublicSigningKeys []string `json:"publicSigningKeys"`
	Permission        string   `json:"permission"`
	// PreferredCompressionMethod is XZ or ZSTD.
	PreferredCompressionMethod string `json:"preferredCompressionMethod"`
}

// Info asks the service about the cache.
func (c *Client) Info(ctx context.Context) (*BinaryCache, error) {
	var info BinaryCache
	if err := c.call(ctx, http.MethodGet, "", nil, nil, &info, requestLimit); err != nil {
		return nil, err
	}
	return &info, nil
}

// Missing gives those of the hash parts that the cache lacks.
func (c *Client) Missing(ctx context.Context, hashes []string) ([]string, error) {
	var missing []string
	for len(hashes) > 0 {
		n := min(len(hashes), maxHashes)
		var some []string
		if err := c.call(ctx, http.MethodPost, "/narinfo", nil, hashes[:n], &some, requestLimit); err != nil {
			return nil, err
		}
		missing = append(missing, some...)
		hashes = hashes[n:]
	}
	return missing, nil
}

// has asks for one narinfo.
func (c *Client) has(ctx context.Context, hash string) (bool, error) {
	err := c.call(ctx, http.MethodHead, "/"+hash+".narinfo", nil, nil, nil, requestLimit)
	if fault.StatusOf(err) == http.StatusNotFound {
		return false, nil
	}
	return err == nil, err
}

// call makes an API request, again as long as it may help. Nil in or out: there is no body, or it does not matter.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any, limit time.Duration) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	address := c.base + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	return fault.Retry(ctx, c.policy, func(parent context.Context) error {
		ctx, cancel := context.WithTimeoutCause(parent, limit, fault.As(fault.Transient, fmt.Errorf("no answer within %v", limit)))
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
		if err != nil {
			return err
		}
		if in != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		req.Header.Set("Accept", "application/json")
		if c.token != "" {
			req.Header.Set("Authorization", "Bearer "+c.token)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			return fault.Sent(ctx, err)
		}
		defer fault.Drain(resp.Body)
		if resp.StatusCode/100 != 2 {
			return c.explain(fault.Status(resp))
		}
		if out == nil {
			return nil
		}
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
		if err != nil {
			return fault.Sent(ctx, err)
		}
		if len(text) > maxAnswer {
			return fmt.Errorf("the service answered more than %d bytes", maxAnswer)
		}
		if err := json.Unmarshal(text, out); err != nil {
			return fmt.Errorf("the service answered what the protocol does not have: %w", err)
		}
		return nil
	})
}

// explain says what the statuses of the service mean.
func (c *Client) explain(err error) error {
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return err
	}
	switch {
	case e.Kind == fault.Auth && c.token == "":
		e.Err = fmt.Errorf("%w; there is no authToken for it", e.Err)
	case e.Kind == fault.Auth:
		e.Err = fmt.Errorf("%w; its authToken may not write, or not at all use, this cache", e.Err)
	}
	return e
}

// Part of an upload.
type Part struct {
	Number int    `json:"partNumber"`
	ETag   string `json:"eTag"`
}

// NarInfo is what makes a path of an uploaded archive.
type NarInfo struct {
	StoreHash   string   `json:"cStoreHash"`
	StoreSuffix string   `json:"cStoreSuffix"`
	NarHash     string   `json:"cNarHash"`
	NarSize     uint64   `json:"cNarSize"`
	FileHash    string   `json:"cFileHash"`
	FileSize    uint64   `json:"cFileSize"`
	References  []string `json:"cReferences"`
	Deriver     string   `json:"cDeriver"`
	Sig         *string  `json:"cSig"`
}

// query is the query of requests about an upload.
func (u *Upload) query(number int) url.Values {
	q := url.Values{"uploadId": {u.uploadID}}
	if number > 0 {
		q.Set("partNumber", strconv.Itoa(number))
	}
	return q
}
