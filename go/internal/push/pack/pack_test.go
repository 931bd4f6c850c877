package pack_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"go.uber.org/goleak"

	"hercules/internal/push/pack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// data is noise and text in turns.
func data(n int) []byte {
	b := bytes.Repeat([]byte("some text that repeats "), n/23+1)[:n]
	r := rand.NewChaCha8([32]byte{1})
	for i := 0; i+100_000 < n; i += 300_000 {
		_, _ = r.Read(b[i : i+100_000])
	}
	return b
}

func unpack(t *testing.T, method string, r io.Reader) []byte {
	t.Helper()
	var err error
	switch method {
	case pack.Zstd:
		var d *zstd.Decoder
		if d, err = zstd.NewReader(r); err == nil {
			defer d.Close()
			r = d
		}
	case pack.XZ:
		r, err = xz.NewReader(r, 0)
	case pack.Gzip:
		r, err = gzip.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	p := pack.New()
	var wg sync.WaitGroup
	for _, method := range []string{pack.Zstd, pack.None, pack.Gzip, pack.XZ} {
		if _, err := exec.LookPath("xz"); err != nil && method == pack.XZ {
			continue
		}
		for _, size := range []int{0, 1, 1000, 256 << 10, 256<<10 + 1, 4 << 20, 4<<20 + 1, 30 << 20} {
			for how, src := range map[string]func(b []byte) func(io.Writer) error{
				"write": func(b []byte) func(io.Writer) error {
					return func(w io.Writer) error {
						for len(b) > 0 {
							n := min(len(b), 70_001)
							if _, err := w.Write(b[:n]); err != nil {
								return err
							}
							b = b[n:]
						}
						return nil
					}
				},
				"read": func(b []byte) func(io.Writer) error {
					return func(w io.Writer) error {
						_, err := io.Copy(w, bytes.NewReader(b))
						return err
					}
				},
				"more than announced": func(b []byte) func(io.Writer) error {
					return func(w io.Writer) error { _, err := w.Write(b); return err }
				},
			} {
				wg.Go(func() {
					b, announced := data(size), uint64(size)
					if how == "more than announced" {
						announced /= 2
					}
					var out bytes.Buffer
					res, err := p.Pack(t.Context(), pack.Compression{Method: method}, announced, &out, src(b))
					if err != nil {
						t.Errorf("%s %d %s: %v", method, size, how, err)
						return
					}
					if res.NarHash != sha256.Sum256(b) || res.NarSize != uint64(size) || res.FileHash != sha256.Sum256(out.Bytes()) || res.FileSize != uint64(out.Len()) {
						t.Errorf("%s %d %s: result %+v", method, size, how, res)
					}
					if size == 0 && method == pack.Zstd {
						return // nothing at all is nothing
					}
					if !bytes.Equal(unpack(t, method, &out), b) {
						t.Errorf("%s %d %s: another archive came out", method, size, how)
					}
				})
			}
		}
	}
	wg.Wait()
}

var errSource, errFull = errors.New("source"), errors.New("full")

type full struct{ left int }

func (f *full) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

// After any failure everything is given back: the packer works as before.
func TestFailuresGiveBack(t *testing.T) {
	t.Parallel()
	p := pack.New()
	b := make([]byte, 20<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	for _, method := range []string{pack.Zstd, pack.None, pack.Gzip} {
		c := pack.Compression{Method: method, Level: 1}
		for range 20 {
			_, err := p.Pack(t.Context(), c, uint64(len(b)), io.Discard, func(w io.Writer) error {
				_, _ = w.Write(b)
				return errSource
			})
			if !errors.Is(err, errSource) {
				t.Fatalf("%s: %v", method, err)
			}
			_, err = p.Pack(t.Context(), c, uint64(len(b)), &full{9 << 20}, func(w io.Writer) error {
				_, err := w.Write(b)
				if err == nil {
					_, err = w.Write(b)
				}
				return fmt.Errorf("wrapped: %w", err)
			})
			if !errors.Is(err, errFull) {
				t.Fatalf("%s: %v", method, err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			_, err = p.Pack(ctx, c, uint64(len(b)), io.Discard, func(w io.Writer) error {
				_, _ = w.Write(b)
				cancel()
				_, err := w.Write(b)
				return err
			})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("%s: %v", method, err)
			}
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for c, good := range map[pack.Compression]bool{
		{Method: pack.Zstd}: true, {Method: pack.Zstd, Level: 22}: true, {Method: pack.Zstd, Level: 23}: false, {Method: pack.None, Level: 99}: true,
		{Method: pack.Gzip, Level: 10}: false, {Method: "br"}: false, {Method: pack.Zstd, Level: -1}: false,
	} {
		if err := c.Check(); (err == nil) != good {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
