package push_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nix-community/go-nix/pkg/nixbase32"

	"hercules/internal/coordinator/cache"
	"hercules/internal/formats"
	"hercules/internal/nix/narinfo"
	"hercules/internal/push"
	"hercules/internal/secrets"
	"hercules/internal/testnix"
)

// helperVariable makes the test program push, as its value says, rather than test: something to be killed.
const helperVariable = "HERCULES_TEST_PUSH"

// helper pushes if this process is to. Its arguments are lines: socket, root, URI of the cache, path.
func helper() bool {
	value := os.Getenv(helperVariable)
	if value == "" {
		return false
	}
	args := strings.Split(value, "\n")
	c := secrets.BinaryCache{Name: "main", Kind: formats.KindNixCache, StoreURI: args[2]}
	if api, ok := strings.CutPrefix(args[2], "cachix+"); ok {
		c = secrets.BinaryCache{Name: "main", Kind: formats.KindCachixCache, APIBaseURL: api, AuthToken: secrets.NewSensitive("write-token"), Compression: "zstd"}
	}
	var d push.Deps
	d.Endpoint.Socket, d.Endpoint.Root = args[0], args[1]
	p, err := push.Open([]secrets.BinaryCache{c}, d)
	if err == nil {
		fmt.Println("ready")
		err = p.Push(context.Background(), []string{args[3]}, push.Options{})
		p.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// pushAndKill pushes in another process, which is killed after some time; 0: it is not. It tells whether that came to its end.
func pushAndKill(t *testing.T, s *testnix.Store, uri, path string, after time.Duration) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), helperVariable+"="+strings.Join([]string{s.Socket(), s.Root(), uri, path}, "\n"), "TMPDIR="+t.TempDir())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = out.Read(make([]byte, 16)) // it begins
	must(t, err)
	if after > 0 {
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
	}
	err = cmd.Wait()
	exit, _ := errors.AsType[*exec.ExitError](err)
	if err != nil && (exit == nil || exit.ExitCode() != -1) {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return err == nil
}

// whole checks that every narinfo has its archive, in full, and counts them.
func whole(t *testing.T, dir string) int {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(dir, "*.narinfo"))
	for _, name := range names {
		text, err := os.ReadFile(name)
		must(t, err)
		n, err := narinfo.Parse(text)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
		file, err := os.ReadFile(filepath.Join(dir, n.URL))
		must(t, err)
		sum := sha256.Sum256(file)
		if uint64(len(file)) != n.FileSize || n.FileHash != "sha256:"+nixbase32.EncodeToString(sum[:]) {
			t.Fatalf("%s: the archive of %s is not complete", name, n.StorePath)
		}
	}
	return len(names)
}

// kills is how often; more with HERCULES_TEST_KILLS.
func kills() int {
	n, err := strconv.Atoi(os.Getenv("HERCULES_TEST_KILLS"))
	if err != nil {
		n = 24
	}
	return n
}

// Pushes that are killed at any moment leave nothing that looks complete, and the next one finishes.
func TestKilledPushes(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(`let part = i: sh "part-${toString i}" {} "head -c ${toString (1000 * i * i * i)} /dev/urandom > $out";
	in sh "all" { parts = builtins.genList part 22; } "echo $parts > $out"`)
	b := newBox(t, cache.Options{})
	for name, make := range map[string]func() (uri, dir string){
		"file": func() (string, string) { d := t.TempDir(); return "file://" + d, d },
		"http": func() (string, string) { c := newWebCache(t); return c.URL, c.dir },
		"box":  func() (string, string) { return "cachix+" + b.URL, "" },
	} {
		t.Run(name, func(t *testing.T) {
			uri, dir := make()
			begin := time.Now()
			if !pushAndKill(t, s, uri, path, 0) {
				t.Fatal("the first push did not end")
			}
			usual := time.Since(begin)
			if dir == "" {
				// That one is whole by its own checks; Nix has the last word below.
				for range kills() / 4 {
					pushAndKill(t, s, uri, path, 1+rand.N(usual))
				}
				substitute(t, s.Nix(), b.URL+"/api/v1/cache/main", b.PublicKey(), path)
				return
			}
			uri, dir = make()
			finished := 0
			for range kills() {
				done := pushAndKill(t, s, uri, path, 1+rand.N(usual))
				n := whole(t, dir)
				if done {
					if n != 23 {
						t.Fatalf("%d paths after a push that ended", n)
					}
					finished++
					uri, dir = make()
				}
			}
			if !pushAndKill(t, s, uri, path, 0) || whole(t, dir) != 23 {
				t.Fatal("the last push did not finish")
			}
			t.Logf("%d killed, %d finished", kills()-finished, finished)
		})
	}
}

// What killed pushes left in a directory is removed when it is old.
func TestLeftoversGo(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(`sh "one" {} "echo > $out"`)
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "nar"), 0o755))
	for name, age := range map[string]time.Duration{".push-old": 48 * time.Hour, "nar/.push-old": 48 * time.Hour, "nar/.push-new": time.Minute} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
		must(t, os.Chtimes(filepath.Join(dir, name), time.Time{}, time.Now().Add(-age)))
	}
	must(t, open(t, s, nixCache("main", "file://"+dir)).Push(t.Context(), []string{path}, push.Options{}))
	left, _ := filepath.Glob(filepath.Join(dir, "nar", ".push-*"))
	top, _ := filepath.Glob(filepath.Join(dir, ".push-*"))
	if len(left) != 1 || len(top) != 0 {
		t.Errorf("left: %v %v", left, top)
	}
}

// A directory whose archives were damaged gets them anew.
func TestDamagedDirectoryHeals(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	path := s.Build(closure)
	dir := t.TempDir()
	must(t, open(t, s, nixCache("main", "file://"+dir)).Push(t.Context(), []string{path}, push.Options{}))
	files, _ := filepath.Glob(filepath.Join(dir, "nar", "*"))
	must(t, os.Truncate(files[0], 3))
	must(t, os.Remove(files[1]))
	infos, _ := filepath.Glob(filepath.Join(dir, "*.narinfo"))
	must(t, os.WriteFile(infos[0], nil, 0o644))
	must(t, open(t, s, nixCache("main", "file://"+dir)).Push(t.Context(), []string{path}, push.Options{}))
	if n := whole(t, dir); n != 15 {
		t.Errorf("%d paths", n)
	}
}
