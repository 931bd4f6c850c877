package watch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hercules/internal/secrets/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// watching is a watcher that is at work. Only notifications make it look: its poll is far away.
type watching struct {
	t       *testing.T
	w       *watch.Watcher
	reports chan []watch.File
}

func start(t *testing.T, o watch.Options, paths ...string) *watching {
	t.Helper()
	if o.Debounce == 0 {
		o.Debounce = 10 * time.Millisecond
	}
	if o.Poll == 0 {
		o.Poll = time.Hour
	}
	w := &watching{t: t, w: watch.New(paths, o), reports: make(chan []watch.File, 1000)}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.w.Run(ctx, func(files []watch.File) { w.reports <- files })
	}()
	t.Cleanup(func() { stop(); <-ended })
	return w
}

func (w *watching) next() []watch.File {
	w.t.Helper()
	select {
	case files := <-w.reports:
		return files
	case <-time.After(20 * time.Second):
		w.t.Fatal("no report")
		return nil
	}
}

// await waits until the first file is reported with a content. What comes before may be any state that it was in.
func (w *watching) await(content string) {
	w.t.Helper()
	w.awaitThat(fmt.Sprintf("content %q", content), func(f watch.File) bool { return f.Err == nil && string(f.Content) == content })
}

func (w *watching) awaitError(what error) {
	w.t.Helper()
	w.awaitThat(what.Error(), func(f watch.File) bool { return errors.Is(f.Err, what) && f.Content == nil })
}

func (w *watching) awaitThat(what string, good func(watch.File) bool) {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	var last []watch.File
	for {
		select {
		case last = <-w.reports:
			if good(last[0]) {
				return
			}
		case <-deadline:
			w.t.Fatalf("%s was not reported; the last report was %q", what, last)
		}
	}
}

// tree does things to files below a directory.
type tree struct {
	t   *testing.T
	dir string
}

func newTree(t *testing.T) *tree {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &tree{t, dir}
}

func (d *tree) path(name string) string { return filepath.Join(d.dir, name) }

func (d *tree) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *tree) write(name, text string) {
	d.t.Helper()
	d.must(os.MkdirAll(filepath.Dir(d.path(name)), 0o755))
	d.must(os.WriteFile(d.path(name), []byte(text), 0o600))
}

// replace puts a new file in the place of another, as careful writers do.
func (d *tree) replace(name, text string) {
	d.t.Helper()
	d.write(name+".tmp", text)
	d.must(os.Rename(d.path(name+".tmp"), d.path(name)))
}

// link makes or switches a link in one step.
func (d *tree) link(to, name string) {
	d.t.Helper()
	d.must(os.MkdirAll(filepath.Dir(d.path(name)), 0o755))
	d.must(os.Symlink(to, d.path(name+".tmp")))
	d.must(os.Rename(d.path(name+".tmp"), d.path(name)))
}

func (d *tree) remove(name string) {
	d.t.Helper()
	d.must(os.RemoveAll(d.path(name)))
}

// Each layout is changed twice: what is watched has to be right also after a change.
func TestLayouts(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		file   string
		set    func(d *tree, text string, n int)
		remove string
	}{
		{
			name: "written in place", file: "secrets/f",
			set: func(d *tree, text string, _ int) { d.write("secrets/f", text) }, remove: "secrets/f",
		},
		{
			name: "replaced by rename", file: "secrets/f",
			set: func(d *tree, text string, _ int) { d.replace("secrets/f", text) }, remove: "secrets/f",
		},
		{
			// sops-nix and agenix: the old generation goes away.
			name: "generations behind an absolute link to a directory", file: "run/secrets/f",
			set: func(d *tree, text string, n int) {
				d.write(fmt.Sprintf("run/secrets.d/%d/f", n), text)
				d.link(d.path(fmt.Sprintf("run/secrets.d/%d", n)), "run/secrets")
				d.remove(fmt.Sprintf("run/secrets.d/%d", n-1))
			}, remove: "run/secrets",
		},
		{
			// The setting names a link that leads to where the secret manager has its own.
			name: "a link to a file behind a link to a directory", file: "var/secrets/f",
			set: func(d *tree, text string, n int) {
				d.write(fmt.Sprintf("run/secrets.d/%d/f", n), text)
				d.link(d.path(fmt.Sprintf("run/secrets.d/%d", n)), "run/secrets")
				d.remove(fmt.Sprintf("run/secrets.d/%d", n-1))
				if n == 1 {
					d.link(d.path("run/secrets/f"), "var/secrets/f")
				}
			}, remove: "run/secrets",
		},
		{
			// Kubernetes: f -> ..data/f, ..data -> a directory with a time as name.
			name: "relative links beside the file", file: "mount/f",
			set: func(d *tree, text string, n int) {
				d.write(fmt.Sprintf("mount/..%d/f", n), text)
				d.link(fmt.Sprintf("..%d", n), "mount/..data")
				if n == 1 {
					d.link("..data/f", "mount/f")
				}
				d.remove(fmt.Sprintf("mount/..%d", n-1))
			}, remove: "mount/f",
		},
		{
			name: "a relative link upwards", file: "a/b/f",
			set: func(d *tree, text string, n int) {
				d.write(fmt.Sprintf("gen%d/f", n), text)
				d.link(fmt.Sprintf("../../gen%d/f", n), "a/b/f")
			}, remove: "a/b/f",
		},
		{
			name: "the directory moved away and another put in its place", file: "secrets/f",
			set: func(d *tree, text string, n int) {
				d.write("new/f", text)
				if n > 1 {
					d.must(os.Rename(d.path("secrets"), d.path(fmt.Sprintf("old%d", n))))
				}
				d.must(os.Rename(d.path("new"), d.path("secrets")))
			}, remove: "secrets",
		},
		{
			name: "the directory removed and made again", file: "base/secrets/f",
			set: func(d *tree, text string, _ int) {
				d.remove("base")
				d.write("base/secrets/f", text)
			}, remove: "base",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := newTree(t)
			w := start(t, watch.Options{}, d.path(test.file))
			w.awaitError(fs.ErrNotExist)
			test.set(d, "one", 1)
			w.await("one")
			for n := 2; n < 5; n++ {
				text := strings.Repeat("x", n)
				test.set(d, text, n)
				w.await(text)
			}
			d.remove(test.remove)
			w.awaitError(fs.ErrNotExist)
			test.set(d, "back", 1)
			w.await("back")
		})
	}
}

// A path that begins with a link is followed too, as on systems where /tmp or /var is one.
func TestRelativePath(t *testing.T) {
	d := newTree(t)
	d.write("gen1/f", "one")
	d.write("gen2/f", "two")
	d.link("gen1", "now")
	t.Chdir(d.dir)
	w := start(t, watch.Options{}, "now/f")
	w.await("one")
	d.link("gen2", "now")
	w.await("two")
}

func TestFirstReportAndOrder(t *testing.T) {
	t.Parallel()
	d := newTree(t)
	d.write("a", "A")
	w := start(t, watch.Options{}, d.path("a"), d.path("gone/b"), d.path("a"))
	files := w.next()
	if len(files) != 3 || files[0].Path != d.path("a") || string(files[0].Content) != "A" || files[0].Err != nil ||
		files[1].Path != d.path("gone/b") || files[1].Content != nil || !errors.Is(files[1].Err, fs.ErrNotExist) || string(files[2].Content) != "A" {
		t.Fatalf("first report: %+v", files)
	}
	// A change of one is a report of all.
	d.write("gone/b", "B")
	for files = w.next(); files[1].Err != nil || len(files[1].Content) == 0; files = w.next() {
	}
	if string(files[0].Content) != "A" || string(files[1].Content) != "B" {
		t.Errorf("report: %+v", files)
	}
}

// Notifications without a new content are no reports, and what happens to neighbours is not even looked at.
func TestSameContent(t *testing.T) {
	t.Parallel()
	d := newTree(t)
	d.write("f", "same")
	w := start(t, watch.Options{}, d.path("f"))
	w.await("same")
	d.replace("f", "same")
	d.must(os.Chmod(d.path("f"), 0o644))
	d.write("neighbour", "x")
	w.w.Reread()
	// Each of these could only be followed by the report that was asked for: it is the barrier.
	w.await("same")
	d.write("f", "other")
	w.await("other")
	select {
	case files := <-w.reports:
		t.Errorf("one report too many: %+v", files)
	default:
	}
}

func TestReread(t *testing.T) {
	t.Parallel()
	d := newTree(t)
	d.write("f", "text")
	w := start(t, watch.Options{Debounce: time.Hour}, d.path("f"))
	w.await("text")
	w.w.Reread()
	w.await("text")
	d.write("f", "new")
	w.w.Reread()
	w.await("new")
}

func TestPollIsTheNet(t *testing.T) {
	t.Parallel()
	d := newTree(t)
	d.write("above/dir/f", "one")
	w := start(t, watch.Options{Poll: 20 * time.Millisecond}, d.path("above/dir/f"))
	w.await("one")
	// Nothing on the way is a link, and nobody is told of plain directories that change their names.
	d.write("new/dir/f", "two")
	d.must(os.Rename(d.path("above"), d.path("old")))
	d.must(os.Rename(d.path("new"), d.path("above")))
	w.await("two")
}

// A file that is written in steps, or is missing for a moment, is seen when it is whole.
func TestDebounce(t *testing.T) {
	t.Parallel()
	const debounce = time.Second
	for range 5 { // A machine that stands still in the middle proves nothing: once more.
		d := newTree(t)
		d.write("f", "old")
		w := start(t, watch.Options{Debounce: debounce}, d.path("f"))
		w.await("old")
		begin := time.Now()
		d.remove("f")
		d.write("f", "ne")
		d.write("f", "new")
		if time.Since(begin) > debounce/2 {
			continue
		}
		if files := w.next(); string(files[0].Content) != "new" {
			t.Errorf("reported: %+v", files)
		}
		return
	}
	t.Skip("SKIP: this machine is too slow")
}

// A file that is never quiet is read nevertheless.
func TestNeverQuiet(t *testing.T) {
	t.Parallel()
	d := newTree(t)
	d.write("f", "begin")
	w := start(t, watch.Options{Debounce: 100 * time.Millisecond}, d.path("f"))
	w.await("begin")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				if err := os.WriteFile(d.path("f"), fmt.Appendf(nil, "%9d", n), 0o600); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	w.next()
}

func TestNotAFile(t *testing.T) {
	t.Parallel()
	d := newTree(t)
	w := start(t, watch.Options{}, d.path("f"))
	w.awaitError(fs.ErrNotExist)
	d.must(os.Mkdir(d.path("f"), 0o700))
	w.awaitError(syscall.EISDIR)
	d.remove("f")
	d.link("f", "f")
	w.awaitError(syscall.ELOOP)
	d.remove("f")
	d.must(syscall.Mkfifo(d.path("f"), 0o600)) // Nobody writes to it: reading it would never end.
	w.awaitThat("not a file", func(f watch.File) bool { return f.Err != nil && strings.Contains(f.Err.Error(), "is not a file") })
	d.remove("f")
	d.write("not-a-directory", "")
	d.link("not-a-directory/f", "f")
	w.awaitError(syscall.ENOTDIR)
	f, err := os.Create(d.path("f.tmp"))
	d.must(err)
	d.must(f.Truncate(17 << 20))
	d.must(f.Close())
	d.must(os.Rename(d.path("f.tmp"), d.path("f")))
	w.awaitThat("too large", func(f watch.File) bool { return f.Err != nil && strings.Contains(f.Err.Error(), "larger than 16 MiB") })
	d.replace("f", "good at last")
	w.await("good at last")
}

// asNobody names the file to watch in a process without rights.
const asNobody = "HERCULES_TEST_WATCH"

func TestPermissionDenied(t *testing.T) {
	if path := os.Getenv(asNobody); path != "" {
		log := slog.New(slog.NewTextHandler(os.Stdout, nil))
		w := watch.New([]string{path}, watch.Options{Debounce: 10 * time.Millisecond, Poll: time.Hour, Log: log})
		ctx, stop := context.WithCancel(t.Context())
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); stop() }() // as long as the test lives
		w.Run(ctx, func(files []watch.File) {
			fmt.Printf("report %q %v\n", files[0].Content, errors.Is(files[0].Err, fs.ErrPermission))
		})
		return
	}
	d := newTree(t)
	d.must(os.Chmod(d.dir, 0o755))
	for dir := filepath.Dir(d.dir); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		d.must(os.Chmod(dir, 0o755))
	}
	d.write("f", "secret")
	cmd := exec.Command(os.Args[0], "-test.run=^TestPermissionDenied$")
	if os.Geteuid() == 0 {
		program, err := os.ReadFile(os.Args[0])
		d.must(err)
		d.must(os.WriteFile(d.path("program"), program, 0o755)) //nolint:gosec // for another user
		cmd = exec.Command(d.path("program"), "-test.run=^TestPermissionDenied$")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = "/"
	} else {
		d.must(os.Chmod(d.path("f"), 0))
	}
	cmd.Env = append(os.Environ(), asNobody+"="+d.path("f"))
	in, err := cmd.StdinPipe()
	d.must(err)
	out, err := cmd.StdoutPipe()
	d.must(err)
	cmd.Stderr = os.Stderr
	d.must(cmd.Start())
	killer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer killer.Stop()
	await := func(want string) {
		t.Helper()
		var line strings.Builder
		for b := make([]byte, 1); !strings.HasSuffix(line.String(), "\n"); {
			if _, err := out.Read(b); err != nil {
				t.Fatalf("%q was not reported: %v after %q", want, err, line.String())
			}
			line.Write(b)
		}
		if line.String() != want+"\n" {
			t.Errorf("got %q, want %q", line.String(), want)
		}
	}
	await(`report "" true`)
	d.must(os.Chmod(d.path("f"), 0o644))
	await(`report "secret" false`)
	if os.Geteuid() == 0 {
		d.must(os.Chmod(d.path("f"), 0o600))
		await(`report "" true`)
	}
	d.must(in.Close())
	_, _ = io.Copy(io.Discard, out)
	d.must(cmd.Wait())
}

func TestChain(t *testing.T) {
	t.Parallel()
	d := newTree(t)
	d.write("gen/1/f", "x")
	d.link(d.path("gen/1"), "secrets")
	d.link("../../secrets/./f", "a/b/f")
	dirs, names := watch.Chain(d.path("a/b/f"))
	check := func(what string, got []string, want ...string) {
		t.Helper()
		for i := range want {
			want[i] = filepath.Join(d.dir, want[i])
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	check("directories", dirs, "a/b", "", "gen/1")
	check("names", names, "a/b", "a/b/f", "", "secrets", "gen/1", "gen/1/f")

	dirs, names = watch.Chain(d.path("secrets/none/f"))
	check("directories to what is missing", dirs, "", "gen/1")
	check("names to what is missing", names, "", "secrets", "gen/1", "gen/1/none")
}
