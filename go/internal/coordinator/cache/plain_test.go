package cache_test

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nix-community/go-nix/pkg/narinfo/signature"

	"hercules/internal/coordinator/cache"
	"hercules/internal/nix/narinfo"
)

func TestPlainPushAndPull(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	a := makeObject(t, "a", []byte("one"))
	b := makeObject(t, "b", randomBytes(3<<20, 1), a)
	s.push(a, b)
	n := s.check(b)
	if diff := cmp.Diff([]string{a.info.StorePath}, n.References); diff != "" {
		t.Error(diff)
	}
	if n.Deriver != b.info.Deriver {
		t.Errorf("deriver %q", n.Deriver)
	}
	if got := s.c.Stats(); got.Paths != 2 || got.Added != 2 || got.ActiveUploads != 0 {
		t.Errorf("stats: %+v", got)
	}
	before := s.c.Stats().Bytes
	s.push(a, b) // again: nothing changes
	if got := s.c.Stats(); got.Paths != 2 || got.Bytes != before {
		t.Errorf("stats after pushing again: %+v, before %d bytes", got, before)
	}
	sound(t, s.c)

	r := s.want(200, "GET", "/nix-cache-info", nil)
	if got := string(r.body); got != "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n" {
		t.Errorf("nix-cache-info: %q", got)
	}
	for path, want := range map[string]string{
		"/nix-cache-info": "text/x-nix-cache-info", "/" + a.hash() + ".narinfo": "text/x-nix-narinfo",
		"/" + a.info.URL: "application/x-nix-nar",
	} {
		r := s.want(200, "HEAD", path, nil)
		if got := r.header.Get("Content-Type"); got != want {
			t.Errorf("%s: %s", path, got)
		}
		s.want(304, "GET", path, nil, "If-None-Match", r.header.Get("ETag"))
	}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	o := makeObject(t, "ranges", randomBytes(9<<20, 2))
	s.push(o)
	for _, tt := range []struct {
		header string
		status int
		want   []byte
	}{
		{"", 200, o.file},
		{"bytes=0-0", 206, o.file[:1]},
		{"bytes=5000000-5999999", 206, o.file[5000000:6000000]},
		{"bytes=-7", 206, o.file[len(o.file)-7:]},
		{fmt.Sprintf("bytes=%d-", len(o.file)), 416, nil},
	} {
		r := s.do("GET", "/"+o.info.URL, nil, "Range", tt.header)
		if r.status != tt.status || tt.want != nil && !bytes.Equal(r.body, tt.want) {
			t.Errorf("%q: %d with %d bytes", tt.header, r.status, len(r.body))
		}
	}
	r := s.want(200, "HEAD", "/"+o.info.URL, nil)
	if got := r.header.Get("Cache-Control"); got != "public, max-age=31536000, immutable" {
		t.Errorf("Cache-Control %q", got)
	}
	// By another spelling of its hash it is the same file.
	sum, err := hex.DecodeString(fmt.Sprint(o.create()["cFileHash"]))
	if err != nil {
		t.Fatal(err)
	}
	if r := s.want(200, "GET", "/nar/"+hex.EncodeToString(sum)+".nar", nil); !bytes.Equal(r.body, o.file) {
		t.Error("base 16 gives another file")
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	o := makeObject(t, "tokens", []byte("x"))
	basic := func(login, password string) string {
		r, _ := http.NewRequest("GET", "http://x", nil)
		r.SetBasicAuth(login, password)
		return r.Header.Get("Authorization")
	}
	for _, tt := range []struct {
		name, auth  string
		public      bool
		read, write int
	}{
		{"none, public", "", true, 404, 401},
		{"none, private", "", false, 401, 401},
		{"wrong, public", "Bearer x", true, 404, 401},
		{"wrong, private", "Bearer x", false, 401, 401},
		{"read", "Bearer " + readToken, false, 404, 403},
		{"read, public", "Bearer " + readToken, true, 404, 403},
		{"write", "bearer " + writeToken, false, 404, 200},
		{"netrc, read", basic("anything", readToken), false, 404, 403},
		{"netrc, write", basic("", writeToken), false, 404, 200},
		{"netrc, wrong", basic(writeToken, ""), false, 401, 401},
		{"empty bearer", "Bearer ", false, 401, 401},
		{"no scheme", writeToken, false, 401, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, func(o *cache.Options) { o.Public = tt.public })
			s.token = ""
			headers := []string{}
			if tt.auth != "" {
				headers = []string{"Authorization", tt.auth}
			}
			for _, path := range []string{"/" + o.hash() + ".narinfo", "/" + o.info.URL, "/" + o.hash() + ".ls"} {
				s.want(tt.read, "GET", path, nil, headers...)
			}
			if tt.read == 401 {
				for _, path := range []string{"/nix-cache-info", api, "/api/v1/cache/other"} {
					s.want(401, "GET", path, nil, headers...)
				}
				s.want(401, "POST", api+"/narinfo", []byte("[]"), append(headers, "Content-Type", "application/json")...)
			}
			s.want(tt.write, "PUT", "/"+o.info.URL, o.file, headers...)
			s.want(tt.write, "PUT", "/"+o.hash()+".narinfo", o.info.Append(nil), headers...)
			r := s.want(tt.write, "POST", api+"/multipart-nar?compression=zst", nil, headers...)
			if tt.write == 401 && r.header.Get("WWW-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
		})
	}
}

func TestBadUploads(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	o := makeObject(t, "bad", randomBytes(200_000, 3))
	other := makeObject(t, "other", []byte("other"))
	s.push(other)
	flipped := bytes.Clone(o.file)
	flipped[len(flipped)/2] ^= 1
	for name, body := range map[string][]byte{
		"flipped": flipped, "cut": o.file[:len(o.file)-1], "longer": append(bytes.Clone(o.file), 'x'),
		"empty": {}, "another one": other.file, "no NAR": []byte("\x1f\x8bnonsense"), "text": []byte("hello"),
	} {
		if r := s.do("PUT", "/"+o.info.URL, bytes.NewReader(body)); r.status != 422 {
			t.Errorf("%s: %v", name, r)
		}
	}
	s.want(404, "GET", "/"+o.info.URL, nil)
	s.want(424, "PUT", "/"+o.hash()+".narinfo", o.info.Append(nil))
	s.want(200, "PUT", "/"+o.info.URL, o.file)
	s.want(422, "PUT", "/"+o.info.URL, flipped) // also when it is there

	change := func(f func(*narinfo.NarInfo)) []byte {
		n := *o.info
		f(&n)
		return n.Append(nil)
	}
	missing := makeObject(t, "missing", nil)
	for _, tt := range []struct {
		name   string
		status int
		body   []byte
	}{
		{"NarHash", 422, change(func(n *narinfo.NarInfo) { n.NarHash = other.info.NarHash })},
		{"NarSize", 422, change(func(n *narinfo.NarInfo) { n.NarSize++ })},
		{"FileSize", 422, change(func(n *narinfo.NarInfo) { n.FileSize++ })},
		{"FileHash", 422, change(func(n *narinfo.NarInfo) { n.FileHash = other.info.FileHash })},
		{"FileHash unknown", 424, change(func(n *narinfo.NarInfo) { n.FileHash = missing.info.FileHash })},
		{"FileHash md5", 400, change(func(n *narinfo.NarInfo) { n.FileHash = "md5:x" })},
		{"Compression", 422, change(func(n *narinfo.NarInfo) { n.Compression = "xz" })},
		{"reference", 424, change(func(n *narinfo.NarInfo) { n.References = []string{missing.info.StorePath} })},
		{"another path", 400, change(func(n *narinfo.NarInfo) { n.StorePath = other.info.StorePath })},
		{"signature", 400, change(func(n *narinfo.NarInfo) { n.Sigs = []string{"nonsense"} })},
		{"our signature", 422, change(func(n *narinfo.NarInfo) {
			n.Sigs = []string{"main-1:" + strings.Repeat("A", 86) + "=="}
		})},
		{"empty", 400, nil},
		{"nonsense", 400, []byte("nonsense")},
		{"too large", 413, bytes.Repeat([]byte("x"), narinfo.MaxSize+1)},
	} {
		if r := s.do("PUT", "/"+o.hash()+".narinfo", bytes.NewReader(tt.body)); r.status != tt.status {
			t.Errorf("%s: %v, want %d", tt.name, r, tt.status)
		}
		if s.has(o) {
			t.Fatalf("%s: visible", tt.name)
		}
	}
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"PUT", "/nar/short.nar", 400},
		{"PUT", "/nar/" + strings.Repeat("e", 52) + ".nar.zst", 400}, // no letter of base 32
		{"PUT", "/nar/../signing-key", 400},
		{"PUT", "/signing-key", 403},
		{"GET", "/signing-key", 404},
		{"GET", "/nar/", 404},
		{"GET", "/%2e%2e/signing-key", 404},
		{"GET", "/log/../signing-key", 404},
		{"GET", "/", 404},
		{"GET", "/x.narinfo", 404},
		{"DELETE", "/" + other.hash() + ".narinfo", 405},
	} {
		if r := s.rawPath(tt.method, tt.path); r.status != tt.status {
			t.Errorf("%s %s: %v, want %d", tt.method, tt.path, r, tt.status)
		}
	}
	s.push(o)
	s.check(o)
	sound(t, s.c)
	if tmp, err := os.ReadDir(filepath.Join(s.dir, "tmp")); err != nil || len(tmp) != 0 {
		t.Errorf("temporary files are left: %v %v", tmp, err)
	}
}

// rawPath makes a request whose path is not cleaned on the way, straight at the handler.
func (s *server) rawPath(method, path string) response {
	s.t.Helper()
	req, err := http.NewRequest(method, "http://cache"+path, strings.NewReader("x"))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+writeToken)
	w := &memoryResponse{header: http.Header{}}
	s.c.Handler().ServeHTTP(w, req)
	return response{status: w.status, header: w.header, body: w.Bytes()}
}

type memoryResponse struct {
	bytes.Buffer
	header http.Header
	status int
}

func (m *memoryResponse) Header() http.Header { return m.header }
func (m *memoryResponse) WriteHeader(s int)   { m.status = s }

// TestMissingReferences pushes a path alone where that is allowed.
func TestMissingReferences(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(o *cache.Options) { o.AllowMissingReferences = true })
	o := makeObject(t, "alone", []byte("alone"), makeObject(t, "elsewhere", nil))
	s.push(o)
	s.check(o)
	sound(t, s.c)
	if done, err := s.c.Collect(t.Context(), cache.Policy{}); err != nil || done.Kept != 1 {
		t.Errorf("%+v %v", done, err)
	}
}

func TestNamedByContents(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	o := makeObject(t, "streamed", randomBytes(300_000, 5))
	nar := "nar/" + strings.TrimPrefix(fmt.Sprint(o.create()["cNarHash"]), "sha256:") + ".nar.zst"
	s.want(200, "PUT", "/"+nar, o.file)
	n := *o.info
	n.URL = nar
	s.want(200, "PUT", "/"+o.hash()+".narinfo", n.Append(nil))
	if got := s.check(o); got.URL != o.info.URL {
		t.Errorf("URL %s, want %s", got.URL, o.info.URL)
	}
}

func TestGzip(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	o := makeObject(t, "gzip", []byte(strings.Repeat("abc", 1000)))
	plain := unzstd(t, o.file)
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	o.file = b.Bytes()
	n := *o.info
	n.Compression, n.FileHash, n.FileSize = "gzip", "sha256:"+o.fileHash(), uint64(len(o.file))
	n.URL = "nar/" + o.fileHash() + ".nar" // as Nix names it
	o.info = &n
	s.push(o)
	s.check(o)
	s.want(200, "HEAD", "/"+n.URL, nil)
}

func TestSignaturesOfClients(t *testing.T) {
	t.Parallel()
	secret, public, err := signature.GenerateKeypair("client-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, func(o *cache.Options) { o.ClientKeys = []string{public.String()} })
	o := makeObject(t, "signed", []byte("signed"))
	s.push(o)
	sig, err := secret.Sign(nil, narinfo.Fingerprint(o.info.PathInfo()))
	if err != nil {
		t.Fatal(err)
	}
	n := *o.info
	n.Sigs = []string{sig.String(), "unknown-1:" + strings.Split(sig.String(), ":")[1]}
	s.want(200, "PUT", "/"+o.hash()+".narinfo", n.Append(nil)) // added to what is there
	got := s.check(o)
	if good, err := narinfo.Verify(got.PathInfo(), []string{public.String()}); err != nil || len(good) != 1 {
		t.Errorf("signatures %v", got.Sigs)
	}
	if len(got.Sigs) != 3 {
		t.Errorf("signatures %v", got.Sigs)
	}
	n.Sigs = []string{"client-1:" + strings.Repeat("A", 86) + "=="}
	s.want(422, "PUT", "/"+o.hash()+".narinfo", n.Append(nil))

	// Without a name, as the Cachix protocol has it.
	p := makeObject(t, "signed-2", []byte("signed"))
	if sig, err = secret.Sign(nil, narinfo.Fingerprint(p.info.PathInfo())); err != nil {
		t.Fatal(err)
	}
	create := p.create()
	create["cSig"] = strings.Split(sig.String(), ":")[1]
	m := s.begin()
	s.complete(200, m, []partDone{s.part(m, 1, p.file)}, create)
	if good, err := narinfo.Verify(s.check(p).PathInfo(), []string{public.String()}); err != nil || len(good) != 1 {
		t.Error("the client's signature is not served")
	}
	create["cSig"] = strings.Repeat("A", 86) + "=="
	m = s.begin()
	s.complete(422, m, []partDone{s.part(m, 1, p.file)}, create)
}

// TestConcurrentUploads sends one NAR, and one path, from many clients at once.
func TestConcurrentUploads(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(o *cache.Options) { o.MaxUploads = 3 })
	o := makeObject(t, "same", randomBytes(2<<20, 6))
	twin := makeObject(t, "twin", randomBytes(2<<20, 6)) // the same NAR
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			p := o
			if i%4 == 3 {
				p = twin
			}
			for _, put := range []struct {
				path string
				body []byte
			}{{p.info.URL, p.file}, {p.hash() + ".narinfo", p.info.Append(nil)}} {
				if r, err := s.try("PUT", "/"+put.path, bytes.NewReader(put.body)); err != nil || r.status != 200 {
					t.Errorf("%s: %v %v", put.path, r, err)
				}
			}
		})
	}
	wg.Wait()
	s.check(o)
	s.check(twin)
	if got := s.c.Stats(); got.Paths != 2 || got.Bytes > int64(len(o.file))+3000 {
		t.Errorf("stats %+v: the NAR of %d bytes is to be there once", got, len(o.file))
	}
	sound(t, s.c)
}

// TestFirstStays pushes one path with two contents.
func TestFirstStays(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	a, b := makeObject(t, "flaky", []byte("a")), makeObject(t, "flaky", []byte("b"))
	s.push(a, b)
	if got := s.check(a); got.FileHash != a.info.FileHash {
		t.Errorf("%s", got.Append(nil))
	}
}

func TestSmallFiles(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	o := makeObject(t, "small", nil)
	realisation := "/realisations/sha256:" + strings.Repeat("0a", 32) + "!out.doi"
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, _ = io.WriteString(w, `{"version": 1}`)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s.want(404, "GET", "/"+o.hash()+".ls", nil)
	s.want(200, "PUT", "/"+o.hash()+".ls", zipped.Bytes(), "Content-Encoding", "gzip")
	if r := s.want(200, "GET", "/"+o.hash()+".ls", nil); string(r.body) != `{"version": 1}` {
		t.Errorf("listing %q", r.body)
	}
	s.want(415, "PUT", "/"+o.hash()+".ls", []byte("x"), "Content-Encoding", "br")
	s.want(400, "PUT", "/"+o.hash()+".ls", []byte("x"), "Content-Encoding", "gzip")
	for _, text := range []string{"", "[1]", "{", "{} {}", "{}x", `"a"`} {
		s.want(400, "PUT", "/"+o.hash()+".ls", []byte(text))
	}
	s.want(200, "PUT", realisation, []byte(`{"id": "x"}`))
	if r := s.want(200, "GET", realisation, nil); r.header.Get("Content-Type") != "application/json" {
		t.Errorf("realisation: %v", r.header)
	}
	log := "/log/" + o.hash() + "-small.drv"
	s.want(200, "PUT", log, []byte("built\n"))
	if r := s.want(200, "GET", log, nil); string(r.body) != "built\n" {
		t.Errorf("log %q", r.body)
	}
	s.want(403, "PUT", "/realisations/x.doi", []byte("{}"))
	s.want(409, "PUT", "/nix-cache-info", []byte("StoreDir: /gnu/store\n"))
	s.want(200, "PUT", "/nix-cache-info", []byte("StoreDir: /nix/store\n"))
}

func TestLimits(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(o *cache.Options) { o.MaxNarSize, o.MaxSize = 1<<20, 3<<20 })
	big := makeObject(t, "big", make([]byte, 2<<20)) // small when compressed
	s.want(413, "PUT", "/"+big.info.URL, big.file)
	big = makeObject(t, "big", randomBytes(4<<20, 7))
	s.want(413, "PUT", "/"+big.info.URL, big.file)
	r, err := s.try("PUT", "/"+big.info.URL, io.MultiReader(bytes.NewReader(big.file))) // its length is not told
	if err == nil && r.status != 413 {
		t.Errorf("chunked: %v", r)
	}
	for i := range 3 {
		s.push(makeObject(t, fmt.Sprint(i), randomBytes(1_000_000, uint64(i))))
	}
	last := makeObject(t, "last", randomBytes(1_000_000, 9))
	before := s.c.Stats().Bytes
	s.want(507, "PUT", "/"+last.info.URL, last.file)
	if got := s.c.Stats().Bytes; got != before {
		t.Errorf("%d bytes after a failed upload, %d before", got, before)
	}
	s.want(404, "GET", "/"+last.info.URL, nil)
	sound(t, s.c)

	s = newServer(t, func(o *cache.Options) { o.FreeReserve = 1 << 60 })
	s.want(507, "PUT", "/"+last.info.URL, last.file)
}
