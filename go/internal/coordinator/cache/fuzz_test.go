package cache_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"hercules/internal/coordinator/cache"
)

// handler is a cache without a network, for fuzzing.
func handler(t testing.TB) *server {
	t.Helper()
	o := options()
	o.MaxNarSize = 1 << 20
	c, err := cache.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return &server{t: t, c: c}
}

// fuzzed makes a request with whatever the fuzzer thinks of. No input is the server's fault.
func (s *server) fuzzed(t *testing.T, method, path string, body []byte) int {
	t.Helper()
	req, err := http.NewRequest(method, "http://cache"+path, bytes.NewReader(body))
	if err != nil {
		t.Skip("not a request")
	}
	req.RequestURI = path
	req.Header.Set("Authorization", "Bearer "+writeToken)
	req.Header.Set("Content-Type", "application/json")
	w := &memoryResponse{header: http.Header{}}
	s.c.Handler().ServeHTTP(w, req)
	if w.status >= 500 && w.status != http.StatusServiceUnavailable {
		t.Fatalf("%s %q: %d %s", method, path, w.status, w.String())
	}
	return w.status
}

func FuzzPath(f *testing.F) {
	s := handler(f)
	o := makeObject(f, "o", nil)
	for _, path := range []string{
		"/nix-cache-info", "/" + o.hash() + ".narinfo", "/" + o.info.URL, "/log/" + o.hash() + "-x.drv", "/" + o.hash() + ".ls",
		"/realisations/sha256:" + strings.Repeat("0", 64) + "!out.doi", "/nar/../x", "/%2e%2e/x", api, api + "/narinfo",
		api + "/multipart-nar/x/complete?uploadId=y", api + "/multipart-nar?compression=zst", api + "/part/x?partNumber=1",
		"//", "/nar/" + strings.Repeat("0", 64) + ".nar.x", "/build-trace-v2/" + o.hash() + "-x.drv/out.doi",
	} {
		for _, method := range []string{"GET", "PUT", "POST"} {
			f.Add(method, path, []byte("{}"))
		}
	}
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		if !strings.HasPrefix(path, "/") {
			t.Skip("not a path")
		}
		s.fuzzed(t, method, path, body)
	})
}

func FuzzNarinfo(f *testing.F) {
	s := handler(f)
	o := makeObject(f, "fuzzed", []byte("contents"))
	if got := s.fuzzedSetup("PUT", "/"+o.info.URL, o.file); got != 200 {
		f.Fatal(got)
	}
	good := o.info.Append(nil)
	f.Add(good)
	f.Add(append(bytes.Clone(good), "Sig: main-1:AAAA\nCA: x\n"...))
	f.Add(bytes.Replace(good, []byte("zstd"), []byte("xz"), 1))
	f.Add([]byte("StorePath: x"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if s.fuzzed(t, "PUT", "/"+o.hash()+".narinfo", body) == 200 {
			sound(t, s.c)
		}
	})
}

func (s *server) fuzzedSetup(method, path string, body []byte) int {
	req, err := http.NewRequest(method, "http://cache"+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+writeToken)
	w := &memoryResponse{header: http.Header{}}
	s.c.Handler().ServeHTTP(w, req)
	return w.status
}

// FuzzNar uploads anything under a name that cannot be right, so that everything is read and nothing is kept.
func FuzzNar(f *testing.F) {
	s := handler(f)
	o := makeObject(f, "fuzzed", bytes.Repeat([]byte("contents"), 100))
	plain := unzstd(f, o.file)
	for _, seed := range [][]byte{
		o.file, plain, o.file[:20], append(bytes.Clone(o.file), o.file...), []byte("\xfd7zXZ\x00\x00"), []byte("BZh91AY&SY"),
		[]byte("\x1f\x8b\x08"), plain[:24],
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if got := s.fuzzed(t, "PUT", "/nar/"+strings.Repeat("0", 64)+".nar", body); got != 422 && got != 413 {
			t.Errorf("status %d", got)
		}
		if got := s.c.Stats().Bytes; got != 0 {
			t.Fatalf("%d bytes are counted", got)
		}
	})
}

func FuzzMultipart(f *testing.F) {
	s := handler(f)
	o := makeObject(f, "fuzzed", []byte("contents"))
	create, err := json.Marshal(map[string]any{"parts": []partDone{{1, `"x"`}}, "narInfoCreate": o.create()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("1", "x", "complete", create)
	f.Add("0", "", "", []byte(`{"contentMD5": "`+md5Text(nil)+`"}`))
	f.Add("10000", "x", "", []byte(`{"contentMD5": "`+md5Text(nil)+`"}`))
	f.Add("-1", "x", "abort", []byte(`[]`))
	f.Add("99999999999999999999", "x", "complete", []byte(`{"parts": null, "narInfoCreate": null}`))
	f.Fuzz(func(t *testing.T, number, uploadID, action string, body []byte) {
		if strings.ContainsAny(number+uploadID+action, "?#&% \x00\r\n\t") {
			t.Skip("another request")
		}
		var m multipart
		req, _ := http.NewRequest("POST", "http://cache"+api+"/multipart-nar?compression=zst", http.NoBody)
		req.Header.Set("Authorization", "Bearer "+writeToken)
		w := &memoryResponse{header: http.Header{}}
		s.c.Handler().ServeHTTP(w, req)
		if err := json.Unmarshal(w.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		if uploadID == "x" {
			uploadID = m.UploadID
		}
		defer s.fuzzedSetup("POST", api+"/multipart-nar/"+m.NarID+"/abort?uploadId="+m.UploadID, nil)
		s.fuzzed(t, "POST", api+"/multipart-nar/"+m.NarID+"/"+action+"?uploadId="+uploadID+"&partNumber="+number, body)
		if got := s.c.Stats(); got.PendingUploads > 1 || got.Paths != 0 {
			t.Fatalf("%+v", got)
		}
	})
}
