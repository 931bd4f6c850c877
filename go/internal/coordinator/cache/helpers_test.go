package cache_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"

	"github.com/klauspost/compress/zstd"

	"hercules/internal/coordinator/cache"
)

func unzstd(t testing.TB, b []byte) []byte {
	t.Helper()
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out, err := d.DecodeAll(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// serverVariable makes the test binary a server of the cache in this directory.
const serverVariable = "HERCULES_TEST_CACHE_DIR"

// serveForever prints its URL and serves until it is killed.
func serveForever(dir string) {
	c, err := cache.Open(dir, options())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("http://" + l.Addr().String())
	fmt.Fprintln(os.Stderr, http.Serve(l, c.Handler()))
	os.Exit(1)
}

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }
