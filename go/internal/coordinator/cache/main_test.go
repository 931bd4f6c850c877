package cache_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/nix-community/go-nix/pkg/nar"
	"github.com/nix-community/go-nix/pkg/nixbase32"
	"go.uber.org/goleak"

	"hercules/internal/coordinator/cache"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
	"hercules/internal/secrets"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(serverVariable); dir != "" {
		serveForever(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	readToken  = "read-token-1"
	writeToken = "write-token-1"
)

func options() cache.Options {
	return cache.Options{
		Name: "main", Public: true, NoSync: true,
		ReadTokens:  []secrets.Sensitive{secrets.NewSensitive(readToken)},
		WriteTokens: []secrets.Sensitive{secrets.NewSensitive("other"), secrets.NewSensitive(writeToken)},
	}
}

// server is a cache behind a real HTTP server, mounted below /cache/main.
type server struct {
	t     testing.TB
	c     *cache.Cache
	dir   string
	url   string
	token string
}

func newServer(t testing.TB, change ...func(*cache.Options)) *server {
	t.Helper()
	return newServerIn(t, t.TempDir(), change...)
}

func newServerIn(t testing.TB, dir string, change ...func(*cache.Options)) *server {
	t.Helper()
	log := &lockedBuffer{}
	o := options()
	o.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, f := range change {
		f(&o)
	}
	c, err := cache.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/cache/main/", http.StripPrefix("/cache/main", c.Handler()))
	h := httptest.NewServer(mux)
	t.Cleanup(func() {
		h.Client().CloseIdleConnections()
		http.DefaultClient.CloseIdleConnections()
		h.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for _, secret := range []string{readToken, writeToken, "signature="} {
			if strings.Contains(log.String(), secret) {
				t.Errorf("the log has %q in it:\n%s", secret, log.String())
			}
		}
	})
	return &server{t: t, c: c, dir: dir, url: h.URL + "/cache/main", token: writeToken}
}

// lockedBuffer is a log that many handlers write to.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

type response struct {
	status int
	header http.Header
	body   []byte
}

func (r response) String() string { return fmt.Sprintf("%d %s", r.status, r.body) }

// do makes a request; headers come in pairs.
func (s *server) do(method, path string, body io.Reader, headers ...string) response {
	s.t.Helper()
	r, err := s.try(method, path, body, headers...)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *server) try(method, path string, body io.Reader, headers ...string) (response, error) {
	url := path
	if !strings.Contains(path, "://") {
		url = s.url + path
	}
	req, err := http.NewRequestWithContext(context.Background(), method, url, body)
	if err != nil {
		return response{}, err
	}
	if s.token != "" && !strings.Contains(path, "://") {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, data}, err
}

// want is do with an expected status.
func (s *server) want(status int, method, path string, body []byte, headers ...string) response {
	s.t.Helper()
	r := s.do(method, path, bytes.NewReader(body), headers...)
	if r.status != status {
		s.t.Fatalf("%s %s: %v, want %d", method, path, r, status)
	}
	return r
}

func (s *server) json(status int, method, path string, in, out any) response {
	s.t.Helper()
	data, err := json.Marshal(in)
	if err != nil {
		s.t.Fatal(err)
	}
	r := s.want(status, method, path, data, "Content-Type", "application/json;charset=utf-8")
	if out != nil {
		if err := json.Unmarshal(r.body, out); err != nil {
			s.t.Fatalf("%s: %v: %s", path, err, r.body)
		}
	}
	return r
}

// object is a store path made up for a test.
type object struct {
	info *narinfo.NarInfo
	file []byte
}

func (o object) hash() string { return storepath.HashPart(o.info.StorePath) }

func (o object) fileHash() string {
	sum := sha256.Sum256(o.file)
	return nixbase32.EncodeToString(sum[:])
}

// makeObject makes a path whose NAR has one file with these contents.
func makeObject(t testing.TB, name string, contents []byte, refs ...object) object {
	t.Helper()
	var plain bytes.Buffer
	w, err := nar.NewWriter(&plain)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteHeader(&nar.Header{Path: "/", Type: nar.TypeRegular, Size: int64(len(contents))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(contents); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	narHash := sha256.Sum256(plain.Bytes())
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	o := object{file: z.EncodeAll(plain.Bytes(), nil)}
	z.Close()
	id := sha256.Sum256([]byte(name))
	o.info = &narinfo.NarInfo{
		StorePath:   storepath.StoreDir + "/" + nixbase32.EncodeToString(id[:20]) + "-" + name,
		URL:         "nar/" + o.fileHash() + ".nar.zst",
		Compression: "zstd",
		FileHash:    "sha256:" + o.fileHash(),
		FileSize:    uint64(len(o.file)),
		NarHash:     narHash[:],
		NarSize:     uint64(plain.Len()),
		Deriver:     storepath.StoreDir + "/" + nixbase32.EncodeToString(id[:20]) + "-" + name + ".drv",
	}
	for _, r := range refs {
		o.info.References = append(o.info.References, r.info.StorePath)
	}
	o.info, err = narinfo.Parse(o.info.Append(nil)) // sorts
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func randomBytes(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = r.Read(b)
	return b
}

// push uploads by the plain protocol.
func (s *server) push(objects ...object) {
	s.t.Helper()
	for _, o := range objects {
		s.want(200, "PUT", "/"+o.info.URL, o.file)
		s.want(200, "PUT", "/"+o.hash()+".narinfo", o.info.Append(nil))
	}
}

func (s *server) has(o object) bool {
	s.t.Helper()
	r := s.do("HEAD", "/"+o.hash()+".narinfo", nil)
	if r.status != 200 && r.status != 404 {
		s.t.Fatalf("HEAD: %v", r)
	}
	return r.status == 200
}

// check reads a path's narinfo, checks the cache's signature and that the NAR is what it says.
func (s *server) check(o object) *narinfo.NarInfo {
	s.t.Helper()
	r := s.want(200, "GET", "/"+o.hash()+".narinfo", nil)
	n, err := narinfo.Parse(r.body)
	if err != nil {
		s.t.Fatal(err)
	}
	good, err := narinfo.Verify(n.PathInfo(), []string{s.c.PublicKey()})
	if err != nil || len(good) != 1 {
		s.t.Fatalf("no good signature of %s: %v\n%s", s.c.PublicKey(), err, r.body)
	}
	file := s.want(200, "GET", "/"+n.URL, nil).body
	sum := sha256.Sum256(file)
	if want := "sha256:" + nixbase32.EncodeToString(sum[:]); n.FileHash != want || n.FileSize != uint64(len(file)) {
		s.t.Fatalf("the NAR has %s, %d bytes\n%s", want, len(file), r.body)
	}
	return n
}

// sound fails the test when something visible is damaged.
func sound(t testing.TB, c *cache.Cache) {
	t.Helper()
	problems, err := c.Verify(t.Context(), cache.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

// create is the NarInfoCreate of an object.
func (o object) create() map[string]any {
	sum := sha256.Sum256(o.file)
	refs := []string{}
	for _, r := range o.info.References {
		refs = append(refs, storepath.Base(r))
	}
	return map[string]any{
		"cStoreHash": o.hash(), "cStoreSuffix": storepath.Name(o.info.StorePath),
		"cNarHash": "sha256:" + nixbase32.EncodeToString(o.info.NarHash), "cNarSize": o.info.NarSize,
		"cFileHash": hex.EncodeToString(sum[:]), "cFileSize": len(o.file),
		"cReferences": refs, "cDeriver": storepath.Base(o.info.Deriver), "cSig": nil,
	}
}

const api = "/api/v1/cache/main"

type multipart struct {
	NarID    string `json:"narId"`
	UploadID string `json:"uploadId"`
}

func (s *server) begin() multipart {
	s.t.Helper()
	var m multipart
	r := s.want(200, "POST", api+"/multipart-nar?compression=zst", nil)
	if err := json.Unmarshal(r.body, &m); err != nil {
		s.t.Fatal(err)
	}
	return m
}

func md5Text(b []byte) string {
	sum := md5.Sum(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func (s *server) partURL(m multipart, number int, data []byte) string {
	s.t.Helper()
	var u struct{ UploadURL string }
	s.json(200, "POST", fmt.Sprintf("%s/multipart-nar/%s?uploadId=%s&partNumber=%d", api, m.NarID, m.UploadID, number),
		map[string]string{"contentMD5": md5Text(data)}, &u)
	return u.UploadURL
}

type partDone struct {
	PartNumber int    `json:"partNumber"`
	ETag       string `json:"eTag"`
}

func (s *server) part(m multipart, number int, data []byte) partDone {
	s.t.Helper()
	r := s.want(200, "PUT", s.partURL(m, number, data), data, "Content-MD5", md5Text(data))
	if r.header.Get("ETag") == "" {
		s.t.Fatal("a part without ETag")
	}
	return partDone{number, r.header.Get("ETag")}
}

func (s *server) complete(status int, m multipart, parts []partDone, create map[string]any) response {
	s.t.Helper()
	return s.json(status, "POST", api+"/multipart-nar/"+m.NarID+"/complete?uploadId="+m.UploadID,
		map[string]any{"parts": parts, "narInfoCreate": create}, nil)
}

// pushCachix uploads by the Cachix protocol, in parts of 5 MiB.
func (s *server) pushCachix(o object) {
	s.t.Helper()
	m := s.begin()
	var parts []partDone
	for i, rest := 1, o.file; len(rest) > 0; i++ {
		n := min(5<<20, len(rest))
		parts = append(parts, s.part(m, i, rest[:n]))
		rest = rest[n:]
	}
	s.complete(200, m, parts, o.create())
}
