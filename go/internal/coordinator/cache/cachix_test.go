package cache_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/coordinator/cache"
)

func TestCachixPush(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	a := makeObject(t, "a", []byte("small"))
	b := makeObject(t, "b", randomBytes(12<<20, 1), a) // three parts
	var missing []string
	s.json(200, "POST", api+"/narinfo", []string{a.hash(), b.hash()}, &missing)
	if diff := cmp.Diff([]string{a.hash(), b.hash()}, missing); diff != "" {
		t.Error(diff)
	}
	s.pushCachix(a)
	s.pushCachix(b)
	s.check(a)
	n := s.check(b)
	if got, want := n.PathInfo(), b.info.PathInfo(); got.Deriver != want.Deriver || !cmp.Equal(got.References, want.References) {
		t.Errorf("got %+v", got)
	}
	if r := s.json(200, "POST", api+"/narinfo", []string{a.hash(), b.hash()}, &missing); string(r.body) != "[]\n" {
		t.Errorf("missing: %s, want an empty list and not null", r.body)
	}
	if got := s.c.Stats(); got.PendingUploads != 0 || got.Paths != 2 {
		t.Errorf("stats %+v", got)
	}
	sound(t, s.c)

	var info map[string]any
	s.json(200, "GET", api, nil, &info)
	want := map[string]any{
		"name": "main", "uri": s.url, "isPublic": true, "publicSigningKeys": []any{s.c.PublicKey()},
		"githubUsername": "", "permission": "Write", "preferredCompressionMethod": "ZSTD",
	}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Error(diff)
	}
	s.want(200, "HEAD", api+"/"+a.hash()+".narinfo", nil)
	s.want(200, "GET", api+"/nix-cache-info", nil)
	if r := s.want(200, "GET", api+"/"+n.URL, nil); !bytes.Equal(r.body, b.file) {
		t.Error("another NAR through the API")
	}

	// The requests of old clients.
	c := makeObject(t, "c", []byte("legacy"), a)
	s.json(424, "POST", api+"/"+c.hash()+".narinfo", c.create(), nil)
	s.want(200, "POST", api+"/nar?compression=zst", c.file)
	s.json(400, "POST", api+"/"+a.hash()+".narinfo", c.create(), nil)
	s.json(200, "POST", api+"/"+c.hash()+".narinfo", c.create(), nil)
	s.check(c)
}

func TestCachixComplete(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	a := makeObject(t, "a", []byte("a"))
	o := makeObject(t, "o", randomBytes(11<<20, 2), a)
	m := s.begin()
	one, two, three := o.file[:5<<20], o.file[5<<20:10<<20], o.file[10<<20:]
	parts := []partDone{s.part(m, 1, one), s.part(m, 5, one), s.part(m, 9, three)}
	parts[1] = s.part(m, 5, two) // in the place of the first one

	bad := func(name string, status int, parts []partDone, change func(map[string]any)) {
		t.Helper()
		create := o.create()
		if change != nil {
			change(create)
		}
		data, err := json.Marshal(map[string]any{"parts": parts, "narInfoCreate": create})
		if err != nil {
			t.Fatal(err)
		}
		r := s.do("POST", api+"/multipart-nar/"+m.NarID+"/complete?uploadId="+m.UploadID, bytes.NewReader(data),
			"Content-Type", "application/json")
		if r.status != status {
			t.Errorf("%s: %v, want %d", name, r, status)
		}
		if s.has(o) {
			t.Fatalf("%s: visible", name)
		}
	}
	bad("no parts", 400, nil, nil)
	bad("one is left out", 400, parts[:2], nil)
	bad("order", 400, []partDone{parts[1], parts[0], parts[2]}, nil)
	bad("double", 400, []partDone{parts[0], parts[0], parts[1], parts[2]}, nil)
	bad("unknown", 400, append(parts[:3:3], partDone{10, `"x"`}), nil)
	bad("ETag", 400, []partDone{parts[0], parts[1], {9, parts[1].ETag}}, nil)
	for member, value := range map[string]any{
		"cStoreHash": "x", "cStoreSuffix": "a/b", "cNarHash": "md5:x", "cNarSize": 0, "cFileHash": "sha256:" + o.fileHash(),
		"cFileSize": 0, "cReferences": nil, "cDeriver": "/etc/passwd", "cSig": "nonsense",
	} {
		bad(member, 400, parts, func(c map[string]any) { c[member] = value })
	}
	// The parts are right; what it refers to is missing and can be pushed.
	bad("reference", 424, parts, nil)
	s.pushCachix(a)
	s.complete(200, m, parts, o.create())
	s.check(o)
	s.complete(200, m, parts, o.create()) // the answer was lost
	other := o.create()
	other["cDeriver"] = "unknown-deriver"
	s.complete(404, m, parts, other)
	s.want(404, "POST", api+"/multipart-nar/"+m.NarID+"/abort?uploadId="+m.UploadID, nil)

	// Wrong contents end the upload.
	for member, value := range map[string]any{
		"cNarHash": a.create()["cNarHash"], "cNarSize": 5, "cFileHash": strings.Repeat("0", 64), "cFileSize": 5,
	} {
		p := makeObject(t, "wrong-"+member, []byte(member))
		m := s.begin()
		done := []partDone{s.part(m, 1, p.file)}
		create := p.create()
		create[member] = value
		s.complete(422, m, done, create)
		s.complete(404, m, done, p.create())
		if s.has(p) {
			t.Errorf("%s: visible", member)
		}
	}
	// A small part that is not the last.
	p := makeObject(t, "p", randomBytes(1000, 3))
	m = s.begin()
	s.complete(400, m, []partDone{s.part(m, 1, p.file[:100]), s.part(m, 2, p.file[100:])}, p.create())
	s.want(200, "POST", api+"/multipart-nar/"+m.NarID+"/abort?uploadId="+m.UploadID, nil)
	if got := s.c.Stats().PendingUploads; got != 0 {
		t.Errorf("%d uploads are pending", got)
	}
	sound(t, s.c)
}

func TestCachixParts(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	m, other := s.begin(), s.begin()
	data := []byte("some bytes")
	upload := api + "/multipart-nar/" + m.NarID
	md5 := map[string]string{"contentMD5": md5Text(data)}
	for _, tt := range []struct {
		path   string
		body   any
		status int
	}{
		{upload + "?uploadId=" + m.UploadID + "&partNumber=0", md5, 400},
		{upload + "?uploadId=" + m.UploadID + "&partNumber=10001", md5, 400},
		{upload + "?uploadId=" + m.UploadID + "&partNumber=-1", md5, 400},
		{upload + "?uploadId=" + m.UploadID + "&partNumber=01", md5, 400},
		{upload + "?uploadId=" + m.UploadID + "&partNumber=", md5, 400},
		{upload + "?uploadId=" + m.UploadID, md5, 400},
		{upload + "?uploadId=" + m.UploadID + "&partNumber=1", map[string]string{"contentMD5": "eA=="}, 400},
		{upload + "?uploadId=" + m.UploadID + "&partNumber=1", map[string]string{}, 400},
		{upload + "?uploadId=" + m.UploadID + "&partNumber=1", []string{"x"}, 400},
		{upload + "?uploadId=" + other.UploadID + "&partNumber=1", md5, 404},
		{upload + "?partNumber=1", md5, 404},
		{api + "/multipart-nar/nonsense?uploadId=x&partNumber=1", md5, 400},
		{api + "/multipart-nar?compression=none", nil, 400},
		{api + "/multipart-nar", nil, 400},
		{api + "/pin", nil, 404},
		{api + "/key", nil, 404},
		{"/api/v1/cache/other/narinfo", []string{}, 404},
		{api + "/narinfo", []string{"../signing-key"}, 400},
		{api + "/narinfo", "x", 400},
	} {
		data, err := json.Marshal(tt.body)
		if err != nil {
			t.Fatal(err)
		}
		if r := s.do("POST", tt.path, bytes.NewReader(data), "Content-Type", "application/json"); r.status != tt.status {
			t.Errorf("%s: %v, want %d", tt.path, r, tt.status)
		}
	}
	s.want(415, "POST", api+"/narinfo", []byte("[]"))
	s.want(405, "GET", api+"/multipart-nar", nil)
	s.want(413, "POST", api+"/narinfo", bytes.Repeat([]byte(" "), 5<<20), "Content-Type", "application/json")

	url := s.partURL(m, 3, data)
	if !strings.HasPrefix(url, s.url+api+"/part/"+m.NarID) {
		t.Errorf("the URL of a part: %s", url)
	}
	if strings.Contains(url, writeToken) {
		t.Error("the token is in the URL")
	}
	s.want(400, "PUT", url, data)
	s.want(400, "PUT", url, data, "Content-MD5", md5Text([]byte("x")))
	s.want(400, "PUT", url, []byte("other bytes"), "Content-MD5", md5Text(data))
	for _, change := range [][2]string{
		{"partNumber=3", "partNumber=4"},
		{m.UploadID, other.UploadID},
		{m.NarID, other.NarID},
		{"expires=", "expires=9"},
		{"signature=", "signature=0"},
		{"md5=", "md5=0"},
	} {
		s.want(403, "PUT", strings.Replace(url, change[0], change[1], 1), data, "Content-MD5", md5Text(data))
	}
	r, err := s.try("PUT", url, io.MultiReader(bytes.NewReader(data)), "Content-MD5", md5Text(data))
	if err != nil || r.status != 411 {
		t.Errorf("without a length: %v %v", r, err)
	}
	s.want(200, "PUT", url, data, "Content-MD5", md5Text(data))
	s.want(200, "POST", upload+"/abort?uploadId="+m.UploadID, nil)
	s.want(404, "PUT", url, data, "Content-MD5", md5Text(data))
	if got := s.c.Stats(); got.Bytes > 200 {
		t.Errorf("%d bytes are counted after abort", got.Bytes)
	}
}

// TestCachixLimit pushes too much in parts.
func TestCachixLimit(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(o *cache.Options) { o.MaxNarSize = 6 << 20 })
	data := randomBytes(5<<20, 4)
	m := s.begin()
	s.part(m, 1, data)
	s.want(413, "PUT", s.partURL(m, 2, data), data, "Content-MD5", md5Text(data))
	o := makeObject(t, "zeros", make([]byte, 8<<20))
	m = s.begin()
	s.complete(413, m, []partDone{s.part(m, 1, o.file)}, o.create())
}

// TestCachixTwice completes one upload from several clients at once.
func TestCachixTwice(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	o := makeObject(t, "twice", randomBytes(6<<20, 5))
	m := s.begin()
	parts := []partDone{s.part(m, 1, o.file[:5<<20]), s.part(m, 2, o.file[5<<20:])}
	body, err := json.Marshal(map[string]any{"parts": parts, "narInfoCreate": o.create()})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			r, err := s.try("POST", api+"/multipart-nar/"+m.NarID+"/complete?uploadId="+m.UploadID, bytes.NewReader(body),
				"Content-Type", "application/json")
			if err != nil || r.status != http.StatusOK {
				t.Errorf("%v %v", r, err)
			}
		})
	}
	wg.Wait()
	s.check(o)
}

// TestManyPresent asks for 10,000 paths of which one is there.
func TestManyPresent(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	o := makeObject(t, "present", nil)
	s.push(o)
	hashes := []string{o.hash()}
	for i := range 9_999 {
		hashes = append(hashes, fmt.Sprintf("%032d", i))
	}
	var missing []string
	s.json(200, "POST", api+"/narinfo", hashes, &missing)
	if diff := cmp.Diff(hashes[1:], missing); diff != "" {
		t.Error(diff)
	}
}
