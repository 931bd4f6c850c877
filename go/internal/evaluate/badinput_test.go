package evaluate_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hercules/internal/evaluate"
	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

// Bad archives end the task with a reason that names the input and says what is wrong with it.
func TestBadArchives(t *testing.T) {
	t.Parallel()
	good := tarball(t, "default.nix", strings.Repeat("{ } # text that does not compress to nothing 0123456789\n", 20))
	entry := func(h tar.Header) []byte { return pack(t, []tar.Header{h}, nil) }
	tests := []struct {
		name string
		data []byte // nil: not there
		want string
	}{
		{"truncated", good[:len(good)/2], "it is cut off"},
		{"dot dot", entry(tar.Header{Typeflag: tar.TypeReg, Name: "a/../../evil"}), `entry "a/../../evil": its name leads out with ".."`},
		{"absolute", entry(tar.Header{Typeflag: tar.TypeReg, Name: "/evil"}), `entry "/evil": its name is absolute`},
		{"written through a link", pack(t, []tar.Header{{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "/tmp"}, {Typeflag: tar.TypeReg, Name: "a/evil"}}, nil), `entry "a/evil": a link on the way to it leads out of the archive`},
		{"hard link out", entry(tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "../../../etc/passwd"}), `it is a hard link that leads out`},
		{"device", entry(tar.Header{Typeflag: tar.TypeBlock, Name: "sda"}), `entry "sda": it is a device or a pipe`},
		{"error page", []byte("<html>Not today</html>"), "it is not a gzipped tar archive"},
		{"not found", nil, "the server answered 404 Not Found: no such source"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			j := newJob(t, testnix.Versions(t)[0])
			delete(j.co.files, "src")
			if test.data != nil {
				j.co.files["src"] = test.data
			}
			j.task.OtherInputs["src"] += "?token=s3cr3t"
			status := j.run()
			got := exceptional(status)
			if !strings.HasPrefix(got, `fetching the sources: input "src" from `+j.co.server.URL+"/source/src: ") || !strings.Contains(got, test.want) || strings.Contains(got, "s3cr3t") {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if n := len(j.co.lines()); n != 0 {
				t.Errorf("events: %q", j.co.lines())
			}
		})
	}
}

// A link that leads out is no reason to refuse a repository, but nothing gets at what is behind it.
func TestLinkOutOfTheSourceIsADeadEnd(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		j := newJob(t, n)
		secret := j.store.File("secret.nix", `"s3cr3t"`)
		nix := `let` + common + `in { a = drv "a" { }; b = drv (import ./link.nix) { }; c = drv (builtins.readFile (./. + "/dir/secret.nix")) { }; d = drv "d" { }; }`
		j.co.files["src"] = pack(t, []tar.Header{
			{Typeflag: tar.TypeReg, Name: "r/default.nix", Mode: 0o644, Size: int64(len(nix))},
			{Typeflag: tar.TypeSymlink, Name: "r/link.nix", Linkname: secret},
			{Typeflag: tar.TypeSymlink, Name: "r/dir", Linkname: filepath.Dir(secret)},
		}, []string{nix})
		j.successful(j.run())
		lines := j.co.lines()[:4]
		for i, want := range []string{`Attribute ["a"] a `, `AttributeError ["b"]`, `AttributeError ["c"]`, `Attribute ["d"] d `} {
			if !strings.HasPrefix(lines[i], want) || strings.Contains(lines[i], "s3cr3t") {
				t.Errorf("got %q, want %q", lines[i], want)
			}
		}
		for _, i := range []int{1, 2} {
			if !strings.Contains(lines[i], "restricted") && !strings.Contains(lines[i], "forbidden") {
				t.Errorf("the error does not say why: %s", lines[i])
			}
		}
		if !j.logged(`the link "r/link.nix" leads out of the source`) {
			t.Error("the log does not mention the link")
		}
	})
}

func (j *job) logged(text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.ContainsFunc(j.log, func(e daemon.Event) bool { return strings.Contains(e.Text, text) })
}

func TestSixtyThousandAttributes(t *testing.T) {
	t.Parallel()
	j := newJob(t, testnix.Versions(t)[0], "default.nix", `let`+common+`
		one = drv "one" { };
	in builtins.listToAttrs (builtins.genList (n: { name = "a${toString (100000 + n)}"; value = one; }) 60000)`)
	status := j.run()
	if got := exceptional(status); got != "Evaluation limit reached." {
		t.Errorf("status %q", got)
	}
	attributes, messages := 0, []string{}
	for _, l := range j.co.lines() {
		switch {
		case strings.HasPrefix(l, "Attribute "):
			attributes++
		case strings.HasPrefix(l, "Message "):
			messages = append(messages, l)
		}
	}
	if attributes != 50_000 {
		t.Errorf("%d attributes", attributes)
	}
	if len(messages) != 1 || !strings.HasPrefix(messages[0], "Message Error Evaluation limit reached: there are more than 50000 attributes") ||
		!strings.Contains(messages[0], j.co.server.URL) {
		t.Errorf("messages %q", messages)
	}
}

// Attributes that go wrong in every way do not touch their siblings.
func TestBadAttributes(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		j := newJob(t, n, "default.nix", `let`+common+`in {
			a-first = drv "first" { };
			"b.with.dots" = drv "dots" { };
			"c\"quote" = drv "quote" { };
			"d\${interpolation}" = drv "interpolation" { };
			"e\nnewline" = drv "newline" { };
			"é unicode ☃" = drv "unicode" { };
			"" = drv "empty" { };
			f-infinite = let x = x + 1; in drv "x" { inherit x; };
			g-abort = abort "aborted on purpose";
			h-overflow = let f = n: 1 + f (n + 1); in drv "overflow" { x = f 0; };
			i-missing = { }.missing;
			j-type = drv 1 { };
			k-assert = assert false; drv "k" { };
			l-fetch = drv (builtins.readFile "/etc/passwd") { };
			m-name = drv "bad name!" { };
			z-last = drv "last" { };
		}`)
		status := j.run()
		j.successful(status)
		got := map[string]string{}
		for _, l := range j.co.lines() {
			if kind, rest, _ := strings.Cut(l, " "); strings.HasPrefix(kind, "Attribute") {
				path, rest, _ := strings.Cut(rest, "] ")
				got[path+"]"] = kind + " " + rest
			}
		}
		want := map[string]string{
			`["a-first"]`: "Attribute first", `["b.with.dots"]`: "Attribute dots", `["c\"quote"]`: "Attribute quote", `["d${interpolation}"]`: "Attribute interpolation",
			`["e\nnewline"]`: "Attribute newline", `["é unicode ☃"]`: "Attribute unicode", `[""]`: "Attribute empty", `["z-last"]`: "Attribute last",
			`["f-infinite"]`: "AttributeError SomeException -: error: infinite recursion encountered",
			`["g-abort"]`:    "AttributeError SomeException -: error: evaluation aborted with the following error message: 'aborted on purpose'",
			`["h-overflow"]`: "AttributeError ", `["i-missing"]`: "AttributeError SomeException -: error: attribute 'missing' missing",
			`["j-type"]`: "AttributeError ", `["k-assert"]`: "AttributeError ", `["l-fetch"]`: "AttributeError ", `["m-name"]`: "AttributeError ",
		}
		for path, prefix := range want {
			if !strings.HasPrefix(got[path], prefix) {
				t.Errorf("%s: got %q, want %q", path, got[path], prefix)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d attributes, want %d: %v", len(got), len(want), got)
		}
		if l := strings.ToLower(got[`["h-overflow"]`]); !strings.Contains(l, "stack overflow") && !strings.Contains(l, "call-depth") && !strings.Contains(l, "call depth") {
			t.Errorf("the overflow is told as %q", l)
		}
	})
}

// The task ends, says why, and what was found before is reported.
func TestDaemonDies(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		j := newJob(t, n, "default.nix", `let`+common+`in {
			a = drv "a" { };
			b = drv (import (drv "plan.nix" { args = [ "-c" "echo '\"b\"' > $out" ]; })) { };
			c = drv "c" { };
		}`)
		j.co.build = nil
		j.co.onPoll = func(drv string) {
			if j.co.builds[drv+" 1"] != nil && j.co.builds[drv+" 1"].polls == 2 {
				j.store.Kill()
				j.co.builds[drv+" 1"].status = agentapi.BuildSuccess
			}
		}
		status := j.run()
		lines := j.co.lines()
		if !slices.Contains(lines, `Attribute ["a"] a Regular`) {
			t.Errorf("what was found before is lost: %q", lines)
		}
		told := exceptional(status)
		for _, l := range lines {
			if strings.HasPrefix(l, `AttributeError ["b"]`) || strings.HasPrefix(l, "Message Error") {
				told += "\n" + l
			}
		}
		if !strings.Contains(told, "daemon") && !strings.Contains(told, "sock") && !strings.Contains(told, "connect") {
			t.Errorf("nobody is told why: %s\n%q", told, lines)
		}
	})
}

func TestCancelWhileWaitingForABuild(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		j := newJob(t, n, "default.nix", `let`+common+`in {
			a = drv "a" { };
			b = drv (import (drv "never" { })) { };
		}`)
		j.co.build = nil // it waits for ever
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		polled := make(chan struct{}, 100)
		j.co.onPoll = func(string) {
			select {
			case polled <- struct{}{}:
			default:
			}
		}
		want := errors.New("somebody pressed stop")
		go func() {
			<-polled
			<-polled
			cancel(want)
		}()
		status, err := j.runErr(ctx)
		if !errors.Is(err, want) || exceptional(status) != want.Error() {
			t.Errorf("got %v and %q", err, exceptional(status))
		}
	})
}

func TestCancelWithoutACause(t *testing.T) {
	t.Parallel()
	j := newJob(t, testnix.Versions(t)[0], "default.nix", "{ }")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	status, err := j.runErr(ctx)
	if !errors.Is(err, evaluate.ErrCancelled) || exceptional(status) != evaluate.ErrCancelled.Error() {
		t.Errorf("got %v and %q", err, exceptional(status))
	}
}

// The coordinator is gone: the task ends rather than evaluating for nobody.
func TestCoordinatorIsGone(t *testing.T) {
	t.Parallel()
	j := newJob(t, testnix.Versions(t)[0], "default.nix", `let`+common+`in { a = drv "a" { }; b = drv (import (drv "plan" { })) { }; }`)
	gone := errors.New("post events: 11 attempts failed")
	j.deps.PostEvents = func(context.Context, []agentapi.EvaluateEvent) error { return gone }
	status, err := j.runErr(t.Context())
	if !errors.Is(err, gone) || !strings.Contains(exceptional(status), gone.Error()) {
		t.Errorf("got %v and %q", err, exceptional(status))
	}
}

func TestPanicEndsOneTask(t *testing.T) {
	t.Parallel()
	j := newJob(t, testnix.Versions(t)[0], "default.nix", `let`+common+`in { a = drv "a" { }; }`)
	j.deps.Pusher = panicking{}
	status, err := j.runErr(t.Context())
	if err == nil || !strings.Contains(err.Error(), "panic: in a dependency") {
		t.Errorf("got %v", err)
	}
	if got := exceptional(status); got != "an error in the agent itself; its log says more" {
		t.Errorf("status %q", got)
	}
}

type panicking struct{}

func (panicking) PushClosure(context.Context, []string) error { panic("in a dependency") }

func TestOddTasks(t *testing.T) {
	t.Parallel()
	sub := "../x"
	tests := []struct {
		name   string
		change func(*agentapi.EvaluateTask)
		want   string
	}{
		{"no src", func(t *agentapi.EvaluateTask) { t.Inputs = nil }, "the task does not say what its source is (inputs.src)"},
		{"no tarball", func(t *agentapi.EvaluateTask) { t.OtherInputs = nil }, "the task does not say where its source is (otherInputs.src)"},
		{"flake from an archive", func(t *agentapi.EvaluateTask) {
			t.IsFlakeJob = true
			url := "https://x.invalid/"
			t.Inputs["src"] = agentapi.ImmutableInput{ArchiveURL: &url}
		}, "the source of a flake job must be a git commit, and the task has another kind of input"},
		{"argument of no input", func(t *agentapi.EvaluateTask) {
			t.AutoArguments = agentapi.Map[string, agentapi.SubPathOf]{"x": {Path: "gone"}}
		}, `the task's argument "x": it refers to the input "gone", which the task does not have`},
		{"argument that leads out", func(t *agentapi.EvaluateTask) {
			t.AutoArguments = agentapi.Map[string, agentapi.SubPathOf]{"x": {Path: "src", SubPath: &sub}}
		}, `the task's argument "x": the path "../x" leads out of the input "src"`},
		{"nixPath of no input", func(t *agentapi.EvaluateTask) {
			t.NixPath = agentapi.List[agentapi.NixPathElement]{{Value: agentapi.SubPathOf{Path: "gone"}}}
		}, `the task's nixPath: it refers to the input "gone", which the task does not have`},
		{"input with an odd name", func(t *agentapi.EvaluateTask) { t.OtherInputs["../x"] = "https://x.invalid/" }, `the task's input "../x" has a name that cannot be a file name`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			j := newJob(t, testnix.Versions(t)[0], "default.nix", "{ }")
			test.change(j.task)
			if got := exceptional(j.run()); !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	for _, f := range []string{"eval-123/arg-src/x", "secure/tmp-netrc1.key", "secure/tmp-netrc2.git.key", "secure/other", "effect-1/x", "keep"} {
		path := filepath.Join(work, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := evaluate.Sweep(work)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	_ = filepath.WalkDir(work, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(work, path)
			left = append(left, rel)
		}
		return err
	})
	if got := fmt.Sprint(left); got != "[effect-1/x keep secure/other]" || len(removed) != 3 {
		t.Errorf("left %v, removed %v", left, removed)
	}
}
