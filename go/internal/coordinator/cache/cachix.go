package cache

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"hercules/internal/coordinator/cache/narfile"
)

// The Cachix push protocol; docs/cachix-protocol.md has the facts and the statuses, its section numbers are named here.

// maxJSON bounds bodies: room for 100,000 hashes, and for a path with as many references as a narinfo may have.
const maxJSON = 4 << 20

// cacheInfo is the object BinaryCache (section 3).
type cacheInfo struct {
	Name              string   `json:"name"`
	URI               string   `json:"uri"`
	IsPublic          bool     `json:"isPublic"`
	PublicSigningKeys []string `json:"publicSigningKeys"`
	GithubUsername    string   `json:"githubUsername"`
	Permission        string   `json:"permission"`
	Preferred         string   `json:"preferredCompressionMethod"`
}

// narInfoCreate is the object NarInfoCreate (section 3).
type narInfoCreate struct {
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

type completedPart struct {
	PartNumber int    `json:"partNumber"`
	ETag       string `json:"eTag"`
}

type completedUpload struct {
	Parts         []completedPart `json:"parts"`
	NarInfoCreate *narInfoCreate  `json:"narInfoCreate"`
}

// routeAPI serves what is below /api/v1/cache/.
func (c *Cache) routeAPI(w *recorder, r *http.Request, path string) error {
	name, rest, _ := strings.Cut(path, "/")
	if name != c.o.Name {
		if c.accessOf(r) == nothing { // do not tell strangers what is here
			return c.require(r, mayRead)
		}
		return fail(http.StatusNotFound, "there is no cache %q here", name)
	}
	first, id, _ := strings.Cut(rest, "/")
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	post := r.Method == http.MethodPost
	switch {
	case rest == "" && get:
		return c.apiInfo(w, r)
	case get && (rest == "nix-cache-info" || first == "nar" || strings.HasSuffix(rest, narinfoExt)):
		return c.routePlain(w, r, rest)
	case rest == "narinfo" && post:
		return c.apiMissing(w, r)
	case first == "part" && r.Method == http.MethodPut:
		return c.apiPart(w, r, id) // its URL is its token
	case first != "nar" && first != "multipart-nar" && !strings.HasSuffix(rest, narinfoExt) || first == "part":
		return fail(http.StatusNotFound, "not found")
	case !post:
		w.Header().Set("Allow", "POST")
		return fail(http.StatusMethodNotAllowed, "method not allowed")
	}
	if err := c.require(r, mayWrite); err != nil {
		return err
	}
	id, action, _ := strings.Cut(id, "/")
	switch {
	case rest == "nar":
		return c.apiNar(w, r)
	case rest == "multipart-nar":
		return c.apiCreate(w, r)
	case first == "multipart-nar" && action == "":
		return c.apiPartURL(w, r, id)
	case first == "multipart-nar" && action == "complete":
		return c.apiComplete(w, r, id)
	case first == "multipart-nar" && action == "abort":
		return c.apiAbort(w, r, id)
	case !strings.Contains(rest, "/") && strings.HasSuffix(rest, narinfoExt):
		return c.apiNarinfo(w, r, strings.TrimSuffix(rest, narinfoExt))
	}
	return fail(http.StatusNotFound, "not found")
}

// base is the URL of the handler's root as the client sees it.
func (c *Cache) base(r *http.Request) string {
	if c.o.BaseURL != "" {
		return c.o.BaseURL
	}
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	// What StripPrefix took away is still in the request's line.
	prefix, _, _ := strings.Cut(r.RequestURI, "?")
	prefix = strings.TrimSuffix(strings.TrimSuffix(prefix, strings.TrimPrefix(r.URL.EscapedPath(), "/")), "/")
	if !strings.HasPrefix(prefix, "/") {
		prefix = ""
	}
	return scheme + "://" + r.Host + prefix
}

func (c *Cache) apiInfo(w *recorder, r *http.Request) error {
	if err := c.require(r, mayRead); err != nil {
		return err
	}
	keys := make([]string, len(c.clients)) // the cache's own first
	for i, k := range c.clients {
		keys[i] = k.String()
	}
	return writeJSON(w, cacheInfo{
		Name: c.o.Name, URI: c.base(r), IsPublic: c.o.Public, PublicSigningKeys: keys,
		Permission: c.accessOf(r).String(), Preferred: "ZSTD",
	})
}

// apiMissing answers which of the asked hashes are not here. Asking for a path counts as an access to it.
func (c *Cache) apiMissing(w *recorder, r *http.Request) error {
	if err := c.require(r, mayRead); err != nil {
		return err
	}
	var hashes []string
	if err := readJSON(r, &hashes); err != nil {
		return err
	}
	missing := []string{}
	for _, h := range hashes {
		if !validHash(h) {
			return fail(http.StatusBadRequest, "%q is not the hash part of a store path", h)
		}
		st, err := c.storage.Stat(r.Context(), narinfoKey(h))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, h)
		case err != nil:
			return err
		default:
			c.touch(r.Context(), st)
		}
	}
	return writeJSON(w, missing)
}

func (c *Cache) apiCreate(w *recorder, r *http.Request) error {
	compression, err := compressionOf(r)
	if err != nil {
		return err
	}
	u, err := c.uploads.create(c, compression)
	if err != nil {
		return err
	}
	return writeJSON(w, map[string]string{"narId": u.narID, "uploadId": u.uploadID})
}

// compressionOf gives the compression as a narinfo has it.
func compressionOf(r *http.Request) (string, error) {
	switch method := r.URL.Query().Get("compression"); method {
	case "xz":
		return "xz", nil
	case "zst":
		return "zstd", nil
	default:
		return "", fail(http.StatusBadRequest, "compression %q: want xz or zst", method)
	}
}

// upload finds the upload that a request is about.
func (c *Cache) upload(r *http.Request, narID string) (*upload, error) {
	if _, err := uuid.Parse(narID); err != nil {
		return nil, fail(http.StatusBadRequest, "%q is not the id of an upload", narID)
	}
	return c.uploads.get(narID, r.URL.Query().Get("uploadId"), c.now())
}

func partNumber(r *http.Request) (int, error) {
	text := r.URL.Query().Get("partNumber")
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n < 1 || n > maxParts || strconv.Itoa(int(n)) != text {
		return 0, fail(http.StatusBadRequest, "partNumber %q: want 1 to %d", text, maxParts)
	}
	return int(n), nil
}

func (c *Cache) apiPartURL(w *recorder, r *http.Request, narID string) error {
	u, err := c.upload(r, narID)
	if err != nil {
		return err
	}
	number, err := partNumber(r)
	if err != nil {
		return err
	}
	var body struct {
		ContentMD5 string `json:"contentMD5"`
	}
	if err := readJSON(r, &body); err != nil {
		return err
	}
	sum, err := base64.StdEncoding.Strict().DecodeString(body.ContentMD5)
	if err != nil || len(sum) != 16 {
		return fail(http.StatusBadRequest, "contentMD5 %q: want the base64 of 16 bytes", body.ContentMD5)
	}
	query := c.uploads.ticket(u, number, sum, c.now())
	return writeJSON(w, map[string]string{
		"uploadUrl": c.base(r) + "/api/v1/cache/" + c.o.Name + "/part/" + u.narID + "?" + query,
	})
}

func (c *Cache) apiAbort(w *recorder, r *http.Request, narID string) error {
	u, err := c.upload(r, narID)
	if err != nil {
		return err
	}
	if err := c.uploads.drop(u); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// apiNar is the upload of old clients: one request, after which the narinfo comes.
func (c *Cache) apiNar(w *recorder, r *http.Request) error {
	compression, err := compressionOf(r)
	if err != nil {
		return err
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
	if _, err := c.putNar(r.Context(), body, wantCompression(compression)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func wantCompression(compression string) func(narfile.Facts) error {
	return func(f narfile.Facts) error {
		if f.Compression != compression {
			return fail(http.StatusUnprocessableEntity, "the file is %s, not %s", f.Compression, compression)
		}
		return nil
	}
}

func (c *Cache) apiNarinfo(w *recorder, r *http.Request, hash string) error {
	var create narInfoCreate
	if err := readJSON(r, &create); err != nil {
		return err
	}
	if create.StoreHash != hash {
		return fail(http.StatusBadRequest, "cStoreHash is not what the path says")
	}
	n, err := c.narinfoOf(&create)
	if err != nil {
		return err
	}
	release, err := c.slot(r.Context())
	if err != nil {
		return err
	}
	defer release()
	file, err := narFile(n)
	if err != nil {
		return err
	}
	f, err := c.narFacts(r.Context(), file)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(http.StatusFailedDependency, "there is no NAR with this cFileHash: it is to be uploaded first")
	} else if err != nil {
		return err
	}
	n.Compression = f.Compression
	if err := c.publish(r.Context(), n); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func writeJSON(w *recorder, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	return json.NewEncoder(w).Encode(v)
}

// readJSON reads a body of exactly one value.
func readJSON(r *http.Request, v any) error {
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/json" {
		return fail(http.StatusUnsupportedMediaType, "want a body of application/json")
	}
	data, err := readBody(r, maxJSON)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fail(http.StatusBadRequest, "malformed body: %s", err)
	}
	return nil
}
