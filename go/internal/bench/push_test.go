//go:build bench

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hercules/internal/formats"
	"hercules/internal/push"
	"hercules/internal/secrets"
	"hercules/internal/testnix"
)

// pushHelper makes this test program push rather than test: so it is a process of its own, whose memory can be told.
// Its arguments follow: socket, root, URI of the cache, kind and the paths.
const pushHelper = "HERCULES_BENCH_PUSH"

func TestMain(m *testing.M) {
	if args := os.Getenv(pushHelper); args != "" {
		if err := pushMain(strings.Split(args, "\n")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func pushMain(args []string) error {
	var d push.Deps
	d.Endpoint.Socket, d.Endpoint.Root = args[0], args[1]
	p, err := push.Open([]secrets.BinaryCache{{Name: "bench", Kind: formats.KindNixCache, StoreURI: args[2]}}, d)
	if err != nil {
		return err
	}
	defer p.Close()
	for range 2 {
		var done push.Done
		begin := time.Now()
		err := p.Push(context.Background(), args[3:], push.Options{Done: func(x push.Done) error { done = x; return nil }})
		if err != nil {
			return err
		}
		fmt.Printf("%f %d %d\n", time.Since(begin).Seconds(), done.Paths, done.Sent)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(status)
	return err
}

// pushed is what a pushing process told.
type pushed struct {
	first, second time.Duration
	sent          uint64
	paths         int
	peakMiB       float64
}

func runPush(t *testing.T, s *testnix.Store, uri string, paths ...string) pushed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	args := append([]string{s.Socket(), s.Root(), uri}, paths...)
	cmd.Env = append(os.Environ(), pushHelper+"="+strings.Join(args, "\n"))
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("pushing: %v\n%s", err, stderr.String())
	}
	var p pushed
	var first, second float64
	if _, err := fmt.Sscanf(out.String(), "%f %d %d\n%f", &first, &p.paths, &p.sent, &second); err != nil {
		t.Fatal(err)
	}
	p.first, p.second = time.Duration(first*1e9), time.Duration(second*1e9)
	_, rest, _ := strings.Cut(out.String(), "VmHWM:")
	var kib float64
	fmt.Sscanf(rest, "%f", &kib)
	p.peakMiB = kib / 1024
	return p
}

// putCache is a plain binary cache over HTTP.
func putCache(t *testing.T) *httptest.Server {
	dir := t.TempDir()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := filepath.Join(dir, filepath.FromSlash(r.URL.Path))
		if r.Method != http.MethodPut {
			http.ServeFile(w, r, path)
			return
		}
		_ = os.MkdirAll(filepath.Dir(path), 0o755)
		f, err := os.Create(path)
		if err == nil {
			_, err = io.Copy(f, r.Body)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

// mixed is a closure of n paths with size bytes in all: a third is noise, a third text, a third in between.
func mixed(t *testing.T, s *testnix.Store, n, size int) string {
	t.Helper()
	return s.Build(fmt.Sprintf(`let
  each = %d;
  part = i: let kind = i - 3 * (i / 3); in sh "part-${toString i}" { } (
    if kind == 0 then "head -c ${toString each} /dev/urandom > $out"
    else if kind == 1 then "mkdir $out; yes line ${toString i} of some text that repeats, as logs and tables do | head -c ${toString each} > $out/text"
    else "mkdir $out; for f in 1 2 3 4 5 6 7 8; do head -c ${toString (each / 32)} /dev/urandom | od -An -tx1 | head -c ${toString (each / 8)} > $out/$f; done");
in sh "all" { parts = builtins.genList part %d; } "echo $parts > $out"`, size/(n-1), n-1))
}

// nixCopy has Nix do it. With xz that takes longer than testnix waits for a program.
func nixCopy(t *testing.T, s *testnix.Store, to, path string) time.Duration {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.Program("nix"), "copy", "--to", to, path)
	cmd.Env = s.Env()
	begin := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nix copy: %v\n%s", err, out)
	}
	return time.Since(begin)
}

func TestFiguresPush(t *testing.T) {
	s := testnix.New(t)
	path := mixed(t, s, 200, 1<<30)
	ours := runPush(t, s, putCache(t).URL, path)
	zstd := nixCopy(t, s, putCache(t).URL+"?compression=zstd&parallel-compression=true", path)
	// Nix's default takes minutes for a gigabyte; a quarter of it tells as much.
	part := mixed(t, s, 50, 1<<28)
	quarter := runPush(t, s, putCache(t).URL, part)
	plain := nixCopy(t, s, putCache(t).URL, part)
	figure("push, 256 MiB, vs nix copy", plain.Seconds()/quarter.first.Seconds(), "×", 4, false)
	figure("push, 1 GiB, vs nix copy with zstd", zstd.Seconds()/ours.first.Seconds(), "×", 1.3, false)
	figure("push, 1 GiB, peak memory", ours.peakMiB, "MiB", 200, true)
	figure("push, 1 GiB, second time", ours.second.Seconds(), "s", 1, true)
	t.Logf("ours %v (%d paths, %d MiB sent), nix copy with zstd %v; a quarter: ours %v, nix copy %v",
		ours.first, ours.paths, ours.sent>>20, zstd, quarter.first, plain)
}

func TestFiguresPushNothing(t *testing.T) {
	s := testnix.New(t)
	path := s.Instantiate(`let d = i: sh "d-${toString i}" {} "echo > $out"; in sh "all" { deps = builtins.genList d 9999; } "echo > $out"`)
	c := putCache(t)
	runPush(t, s, c.URL, path)
	ours := runPush(t, s, c.URL, path)
	figure("push, asking for 10,000 present paths", ours.first.Seconds(), "s", 3, true)
}
