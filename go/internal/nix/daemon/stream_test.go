package daemon_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
)

// narTokens encodes byte strings one after the other, as a NAR is made of.
func narTokens(tokens ...string) []byte {
	var b []byte
	for _, s := range tokens {
		b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
		b = append(b, make([]byte, -len(s)&7)...)
	}
	return b
}

// fileNar is the NAR of a regular file of the given size, all zeros, made while it is read.
func fileNar(size int64) io.Reader {
	head := narTokens("nix-archive-1", "(", "type", "regular", "contents")
	head = binary.LittleEndian.AppendUint64(head, uint64(size))
	return io.MultiReader(bytes.NewReader(head), io.LimitReader(zeroReader{}, size+(-size&7)), bytes.NewReader(narTokens(")")))
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func infoOf(t testing.TB, path string, nar io.Reader) *daemon.PathInfo {
	t.Helper()
	h := sha256.New()
	n, err := io.Copy(h, nar)
	if err != nil {
		t.Fatal(err)
	}
	return &daemon.PathInfo{Path: path, NarHash: h.Sum(nil), NarSize: uint64(n)}
}

func totalAlloc() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// TestLargeNarInAndOut moves 1 GB (100 MB with -short) through a proxy, both ways. It is not parallel: it looks at what
// the whole process allocates.
func TestLargeNarInAndOut(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 100 << 20
	}
	s := testnix.New(t)
	ep := s.Endpoint()
	ep.Socket = serve(t, &daemon.Proxy{Upstream: s.Endpoint()})
	c := dial(t, ep, daemon.Options{})
	path := "/nix/store/" + strings.Repeat("1", 32) + "-large"
	info := infoOf(t, path, fileNar(size))
	before := totalAlloc()
	if err := c.AddToStoreNar(t.Context(), info, fileNar(size), daemon.AddOptions{DontCheckSignatures: true}); err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if err := c.NarFromPath(t.Context(), path, h); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(h.Sum(nil), info.NarHash) {
		t.Error("the NAR that comes out differs")
	}
	if got := totalAlloc() - before; got > 16<<20 {
		t.Errorf("%d bytes were allocated in all for twice %d", got, size)
	}
	if !must(c.IsValidPath(t.Context(), path))(t) {
		t.Error("the connection has lost its place")
	}
}

func TestAddAndSign(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		c := dial(t, s.Endpoint(), daemon.Options{})
		ctx := t.Context()
		// A name that is not UTF-8 and one that needs no escape.
		nar := narTokens("nix-archive-1", "(", "type", "directory",
			"entry", "(", "name", "a\xff\n", "node", "(", "type", "symlink", "target", "b", ")", ")",
			"entry", "(", "name", "b", "node", "(", "type", "regular", "executable", "", "contents", "#!", ")", ")", ")")
		trust := daemon.AddOptions{DontCheckSignatures: true}
		first := infoOf(t, "/nix/store/"+strings.Repeat("1", 32)+"-first", bytes.NewReader(nar))
		second := infoOf(t, "/nix/store/"+strings.Repeat("2", 32)+"-second", bytes.NewReader(nar))
		second.References = []string{first.Path, second.Path}
		third := infoOf(t, "/nix/store/"+strings.Repeat("3", 32)+"-third", fileNar(200_000))
		open := func(r io.Reader) func() (io.ReadCloser, error) {
			return func() (io.ReadCloser, error) { return io.NopCloser(r), nil }
		}
		if err := c.AddToStoreNar(ctx, first, bytes.NewReader(nar), trust); err != nil {
			t.Fatal(err)
		}
		err := c.AddMultipleToStore(ctx, []daemon.NarSource{
			{Info: second, Open: open(bytes.NewReader(nar))},
			{Info: third, Open: open(fileNar(200_000))},
		}, trust)
		if err != nil {
			t.Fatal(err)
		}
		_, key, _ := ed25519.GenerateKey(rand.Reader)
		signature := "test-1:" + base64.StdEncoding.EncodeToString(ed25519.Sign(key, []byte("anything")))
		for _, want := range []*daemon.PathInfo{first, second, third} {
			if err := c.AddSignatures(ctx, want.Path, []string{signature}); err != nil {
				t.Fatal(err)
			}
			got, _, err := c.QueryPathInfo(ctx, want.Path)
			if err != nil {
				t.Fatal(err)
			}
			want.RegistrationTime, want.Signatures = got.RegistrationTime, []string{signature}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			var out bytes.Buffer
			if err := c.NarFromPath(ctx, want.Path, &out); err != nil {
				t.Error(err)
			}
			if infoOf(t, want.Path, &out); out.Len() != 0 {
				t.Error("not all was read")
			}
		}
	})
}

func TestAddFails(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		direct := s.Endpoint()
		proxied := s.Endpoint()
		proxied.Socket = serve(t, &daemon.Proxy{Upstream: direct})
		for name, ep := range map[string]daemon.Endpoint{"direct": direct, "proxied": proxied} {
			c := dial(t, ep, daemon.Options{})
			path := "/nix/store/" + strings.Repeat("1", 32) + "-bad"
			trust := daemon.AddOptions{DontCheckSignatures: true}
			info := infoOf(t, path, fileNar(1<<20))
			info.NarHash[0]++
			var remote *daemon.RemoteError
			if err := c.AddToStoreNar(t.Context(), info, fileNar(1<<20), trust); !asRemote(err, &remote) || !strings.Contains(remote.Msg, "hash mismatch") {
				t.Errorf("%s: the error is %v", name, err)
			}
			info.NarHash[0]--
			if err := c.AddToStoreNar(t.Context(), info, fileNar(1<<20), daemon.AddOptions{}); !asRemote(err, &remote) ||
				!strings.Contains(remote.Msg, "signature") {
				t.Errorf("%s: the error is %v", name, err)
			}
			if must(c.IsValidPath(t.Context(), path))(t) {
				t.Errorf("%s: it is valid", name)
			}
			// The data ends with an error of its own: nothing of it may stay.
			broken := errors.New("the disk is gone")
			err := c.AddToStoreNar(t.Context(), info, io.MultiReader(io.LimitReader(fileNar(1<<20), 100_000), errorReader{broken}), trust)
			if !errors.Is(err, broken) || !c.Broken() {
				t.Errorf("%s: the error is %v", name, err)
			}
			short := infoOf(t, path, fileNar(100))
			short.NarSize++
			c = dial(t, ep, daemon.Options{})
			if err := c.AddToStoreNar(t.Context(), short, fileNar(100), trust); err == nil || !strings.Contains(err.Error(), "bytes") {
				t.Errorf("%s: the error is %v", name, err)
			}
			if must(dial(t, ep, daemon.Options{}).IsValidPath(t.Context(), path))(t) {
				t.Errorf("%s: it is valid", name)
			}
			// A sink that fails, and a path that is not there.
			c = dial(t, ep, daemon.Options{})
			text := must(c.AddTextToStore(t.Context(), "text", strings.Repeat("x", 300_000), nil))(t)
			if err := c.NarFromPath(t.Context(), text, errorWriter{broken}); !errors.Is(err, broken) || !c.Broken() {
				t.Errorf("%s: the error is %v", name, err)
			}
			c = dial(t, ep, daemon.Options{})
			if err := c.NarFromPath(t.Context(), noPath, io.Discard); !asRemote(err, &remote) {
				t.Errorf("%s: the error is %v", name, err)
			}
		}
	})
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

type errorWriter struct{ err error }

func (w errorWriter) Write([]byte) (int, error) { return 0, w.err }

func TestStdio(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		c := dial(t, s.StdioEndpoint(), daemon.Options{})
		path := must(c.AddTextToStore(t.Context(), "text", strings.Repeat("text", 100_000), nil))(t)
		if !must(c.IsValidPath(t.Context(), path))(t) {
			t.Error("it is not valid")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestDaemonDiesInTheMiddle(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		drv := s.Instantiate(`sh "endless" {} "echo started; sleep ` + uniqueMark() + `"`)
		proxied := s.Endpoint()
		proxied.Socket = serve(t, &daemon.Proxy{Upstream: s.Endpoint()})
		started := make(chan struct{}, 10)
		o := daemon.Options{Log: func(e daemon.Event) {
			if e.Kind == daemon.EventResult && e.Type == daemon.ResBuildLogLine {
				started <- struct{}{}
			}
		}}
		c := dial(t, proxied, o)
		errs := make(chan error, 1)
		go func() { errs <- c.BuildPaths(context.Background(), outputs(drv), daemon.BuildNormal) }()
		<-started
		idle := dial(t, s.Endpoint(), daemon.Options{})
		s.Kill()
		if err := <-errs; err == nil || !strings.Contains(err.Error(), "the Nix daemon closed the connection during BuildPaths") {
			t.Errorf("the error is %v", err)
		}
		_, err := idle.IsValidPath(t.Context(), noPath)
		var closed *daemon.ClosedError
		if !errors.As(err, &closed) || closed.During != "IsValidPath" {
			t.Errorf("the error is %v", err)
		}
		if _, err := daemon.Dial(t.Context(), s.Endpoint(), daemon.Options{}); err == nil {
			t.Error("there is a daemon")
		}
	})
}

func TestCommandDies(t *testing.T) {
	t.Parallel()
	_, err := daemon.Dial(t.Context(), daemon.Endpoint{Command: []string{"/bin/sh", "-c", "echo host key unknown >&2; exit 255"}}, daemon.Options{})
	if err == nil || !strings.Contains(err.Error(), "the Nix daemon closed the connection during the handshake") || !strings.Contains(err.Error(), "host key unknown") {
		t.Errorf("the error is %v", err)
	}
	if _, err = daemon.Dial(t.Context(), daemon.Endpoint{Command: []string{"/nonexistent"}}, daemon.Options{}); err == nil {
		t.Error("it runs")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = daemon.Dial(ctx, daemon.Endpoint{Command: []string{"cat"}}, daemon.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}

func TestManyClientsOfAProxy(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	ep := s.Endpoint()
	ep.Socket = serve(t, &daemon.Proxy{Upstream: s.Endpoint()})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c, err := daemon.Dial(t.Context(), ep, daemon.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for j := range 20 {
				text := strings.Repeat(string(rune('a'+i)), 1+j*5000)
				path, err := c.AddTextToStore(t.Context(), "text", text, nil)
				if err != nil {
					t.Error(err)
					return
				}
				var nar bytes.Buffer
				if err := c.NarFromPath(t.Context(), path, &nar); err != nil || !bytes.Contains(nar.Bytes(), []byte(text)) {
					t.Errorf("%s: %v", path, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestUnknownOperation sends an operation that no daemon has, through the proxy: the daemon's answer must come back.
func TestUnknownOperation(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		var seen records
		socket := serve(t, seen.proxy(s))
		conn := must(net.Dial("unix", socket))(t)
		defer conn.Close()
		send := func(ns ...uint64) {
			var b []byte
			for _, n := range ns {
				b = binary.LittleEndian.AppendUint64(b, n)
			}
			if _, err := conn.Write(b); err != nil {
				t.Error(err)
			}
		}
		send(0x6e697863, 1<<8|34, 0, 0, 9999)
		answer := string(must(io.ReadAll(conn))(t))
		if !strings.Contains(answer, "invalid operation") {
			t.Errorf("the answer is %q", answer)
		}
		if log := seen.log.String(); !slices.Contains(strings.Fields(log), "operation=9999") || !strings.Contains(log, "level=WARN") {
			t.Errorf("the log is %q", log)
		}
	})
}
