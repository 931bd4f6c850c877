package cache_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hercules/internal/coordinator/cache"
	"hercules/internal/secrets"
)

func TestReopen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := options()
	c, err := cache.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Open(dir, o); err == nil {
		t.Error("opened twice")
	}
	key := c.PublicKey()
	if !strings.HasPrefix(key, "main-1:") {
		t.Errorf("key %s", key)
	}
	if st, err := os.Stat(filepath.Join(dir, "signing-key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v %v", st.Mode(), err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tmp", "nar-left"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServerIn(t, dir)
	if s.c.PublicKey() != key {
		t.Error("another key after opening again")
	}
	p := makeObject(t, "p", []byte("p"))
	s.push(p)
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*cache.Options){
		"no name":     func(o *cache.Options) { o.Name = "" },
		"slash":       func(o *cache.Options) { o.Name = "a/b" },
		"dots":        func(o *cache.Options) { o.Name = ".." },
		"empty token": func(o *cache.Options) { o.ReadTokens = []secrets.Sensitive{{}} },
		"key name":    func(o *cache.Options) { o.KeyName = "a:b" },
		"key":         func(o *cache.Options) { o.SigningKey = secrets.NewSensitive("name:c2VjcmV0") },
		"client key":  func(o *cache.Options) { o.ClientKeys = []string{"nonsense"} },
	} {
		o := options()
		change(&o)
		c, err := cache.Open(t.TempDir(), o)
		if err == nil {
			c.Close()
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%s: the key is in the error: %v", name, err)
		}
	}
}

// TestCutUpload stops sending in the middle of a NAR.
func TestCutUpload(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	o := makeObject(t, "cut", randomBytes(1<<20, 4))
	conn, err := net.Dial("tcp", strings.TrimPrefix(strings.TrimSuffix(s.url, "/cache/main"), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT /cache/main/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n",
		o.info.URL, writeToken, len(o.file))
	if _, err := conn.Write(o.file[:len(o.file)/2]); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn) // the server has finished with it then
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
		t.Errorf("answer %q", answer)
	}
	s.want(404, "GET", "/"+o.info.URL, nil)
	if got := s.c.Stats(); got.Bytes > 1000 {
		t.Errorf("%d bytes are still counted", got.Bytes)
	}
	s.push(o)
	s.check(o)
}

// TestStandstill sends a part of a NAR and then nothing.
func TestStandstill(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(o *cache.Options) { o.Idle = 100 * time.Millisecond })
	o := makeObject(t, "standstill", randomBytes(1<<20, 4))
	conn, err := net.Dial("tcp", strings.TrimPrefix(strings.TrimSuffix(s.url, "/cache/main"), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT /cache/main/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\nx",
		o.info.URL, writeToken, len(o.file))
	answer, err := io.ReadAll(conn) // ends because the server cuts it off
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
		t.Errorf("answer %q", answer)
	}
	s.push(o)
}
