package evaluate_test

import (
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/evaluate"
	"hercules/internal/evaluate/traverse"
	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/agentclient"
)

var update = flag.Bool("update", false, "write golden files")

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// job is an evaluation task with all that it takes: a store, a coordinator, a repository.
type job struct {
	t     *testing.T
	store *testnix.Store
	co    *coordinator
	task  *agentapi.EvaluateTask
	deps  evaluate.Deps
	work  string

	mu  sync.Mutex
	log []daemon.Event
}

const common = `
	drv = name: attrs: derivation ({
		inherit name;
		system = builtins.currentSystem;
		builder = "/bin/sh";
		args = [ "-c" "echo ${name} > $out" ];
	} // attrs);
`

// newJob makes a task for a repository with these files (name, contents, …).
func newJob(t *testing.T, n testnix.Nix, files ...string) *job {
	t.Helper()
	s := testnix.New(t, testnix.WithNix(n))
	co := newCoordinator(t)
	co.files["src"] = tarball(t, files...)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := agentclient.New(agentclient.Options{BaseURL: co.server.URL, Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	client = client.WithToken(token)
	j := &job{t: t, store: s, co: co, work: filepath.Join(s.Dir(), "work")}
	str := func(s string) json.RawMessage { b, _ := json.Marshal(s); return b }
	j.task = &agentapi.EvaluateTask{
		ID:          taskID,
		OtherInputs: agentapi.Map[string, string]{"src": co.server.URL + "/source/src"},
		Inputs: agentapi.Map[string, agentapi.ImmutableInput]{"src": {Git: &agentapi.ImmutableGitInput{
			Rev: "3f9b0c4de21a7785d60c1b9ae2f4471c8d5e6a90", Ref: "refs/heads/main", HTTPURL: "https://forge.example/acme/widgets.git",
		}}},
		InputMetadata: agentapi.Map[string, agentapi.Map[string, json.RawMessage]]{"src": {"name": str("widgets")}},
		Selector:      agentapi.Selector{ConfigOrLegacy: &agentapi.Unit{}},
	}
	j.deps = evaluate.Deps{
		PostEvents: func(ctx context.Context, events []agentapi.EvaluateEvent) error {
			return client.PostEvaluateEvents(ctx, taskID, events)
		},
		BuildStatus: client.EvalBuild,
		Log: func(e daemon.Event) {
			j.mu.Lock()
			defer j.mu.Unlock()
			j.log = append(j.log, e)
		},
		Endpoint:      s.Endpoint(),
		NixProgram:    s.Program("nix"),
		Env:           s.Env(),
		WorkDirectory: j.work,
		HTTPClient:    &http.Client{Transport: transport},
		APIBaseURL:    co.server.URL,
		Limits:        traverse.Limits{Workers: 2},
		PollInterval:  10 * time.Millisecond,
		BatchDelay:    10 * time.Millisecond,
		FetchRetry:    []time.Duration{time.Millisecond},
	}
	co.build = func(drv string) error {
		_, err := s.TryRun("nix-store", "--realise", "--quiet", drv)
		return err
	}
	return j
}

// run does the task and checks that nothing is left behind.
func (j *job) run() agentapi.TaskStatus {
	j.t.Helper()
	status, err := j.runErr(j.t.Context())
	if (err == nil) != (status.Successful != nil) {
		j.t.Errorf("error %v with status %+v", err, status)
	}
	return status
}

func (j *job) runErr(ctx context.Context) (agentapi.TaskStatus, error) {
	j.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	status, err := evaluate.Run(ctx, j.task, j.deps)
	if left := leftOver(j.t, j.work); len(left) > 0 {
		j.t.Errorf("left behind: %v", left)
	}
	return status, err
}

// leftOver are the files below a work directory, except for its standing directories, and processes that know of it.
func leftOver(t *testing.T, work string) (left []string) {
	t.Helper()
	entries, err := os.ReadDir(work)
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, e := range entries {
		if e.Name() != "secure" {
			left = append(left, e.Name())
		}
	}
	secrets, _ := filepath.Glob(filepath.Join(work, "secure", "*"))
	left = append(left, secrets...)
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		for _, f := range []string{"environ", "cmdline"} {
			if b, err := os.ReadFile(filepath.Join(p, f)); err == nil && strings.Contains(string(b), work) {
				line, _ := os.ReadFile(filepath.Join(p, "cmdline")) // not the environment, which is nobody's business
				left = append(left, p+": "+strings.ReplaceAll(string(line), "\x00", " "))
			}
		}
	}
	return left
}

func (j *job) successful(s agentapi.TaskStatus) {
	j.t.Helper()
	if s.Successful == nil {
		j.t.Errorf("the task is not successful: %s", exceptional(s))
	}
}

func exceptional(s agentapi.TaskStatus) string {
	if s.Exceptional == nil {
		return "(not exceptional)"
	}
	return *s.Exceptional
}

// golden compares the events with a file, the same for each version of Nix.
func (j *job) golden(file string) {
	j.t.Helper()
	path := filepath.Join("testdata", file+".golden")
	got := strings.Join(j.co.lines(), "\n") + "\n"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			j.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		j.t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		j.t.Error(d)
	}
}

func onPush(name string) agentapi.Selector {
	return agentapi.Selector{OnPush: &agentapi.OnPush{Name: name}}
}

const ciNix = `{ src }: let` + common + `in {
	herculesCI = { ref, branch, rev, herculesCI, primaryRepo, ... }: {
		onPush.default = {
			outputs = {
				packages = {
					hello = drv "hello-${branch}" { dep = drv "dep" { }; };
					tolerated = drv "tolerated" { ignoreFailure = true; };
					must = drv "must" { requireFailure = true; };
				};
				shell = drv "shell" { buildDependenciesOnly = true; tool = drv "tool" { }; };
				effects.deploy = drv "deploy" { isEffect = true; input = drv "deploy-input" { }; };
				stray = drv "stray" { isEffect = true; };
				broken.thrown = throw "thrown on purpose";
				broken.aborted = abort "aborted on purpose";
				broken.fine = drv "fine" { };
				dirName = drv (baseNameOf src.outPath) { };
			};
		};
		onPush.other = { extraInputs.lib = { project = "lib"; ref = "refs/heads/stable"; }; outputs = { }; };
		onPush.disabled = { enable = false; outputs = { }; };
		onSchedule.nightly = { when = { hour = [ 2 ]; dayOfWeek = [ "Mon" ]; }; outputs = { }; };
	};
}`

func TestShapes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		files    []string
		selector agentapi.Selector
		prepare  func(j *job)
	}{
		{name: "ci-config", files: []string{"ci.nix", ciNix}},
		{name: "ci-push", files: []string{"ci.nix", ciNix}, selector: onPush("default")},
		{name: "ci-unknown-job", files: []string{"nix/ci.nix", ciNix}, selector: onPush("gone")},
		{name: "legacy", files: []string{"default.nix", `let` + common + `in {
			a = drv "a" { };
			b = { recurseForDerivations = true; c = drv "c" { }; deploy = drv "deploy" { isEffect = true; }; };
			hidden = { d = drv "d" { }; };
			list = [ (drv "in-list" { }) ];
			thrown = throw "thrown on purpose";
			z = drv "z" { dep = drv "dep" { }; };
		}`}},
		{name: "legacy-arguments", files: []string{"default.nix", `{ src, pkgs, plain ? 1 }: let` + common + `in {
			a = drv "${baseNameOf src}-${toString plain}" { };
			b = drv (import pkgs).name { };
			c = drv (import <pkgs/lib>).name { };
		}`}, prepare: func(j *job) {
			j.co.files["pkgs"] = tarball(j.t, "default.nix", `{ name = "from-pkgs"; }`, "lib/default.nix", `{ name = "from-lib"; }`)
			j.task.OtherInputs["pkgs"] = j.co.server.URL + "/source/pkgs"
			j.task.AutoArguments = agentapi.Map[string, agentapi.SubPathOf]{"src": {Path: "src"}, "pkgs": {Path: "pkgs"}}
			prefix := "pkgs"
			j.task.NixPath = agentapi.List[agentapi.NixPathElement]{{Prefix: &prefix, Value: agentapi.SubPathOf{Path: "pkgs"}}}
		}},
		{name: "local-flake", files: []string{"flake.nix", `{ outputs = { self }: let` + strings.ReplaceAll(common, "builtins.currentSystem", `"x86_64-linux"`) + `in {
			packages.x86_64-linux.default = drv "default" { };
			packages.riscv64-linux.default = throw "not for this system";
			devShells.x86_64-linux.default = drv "shell" { tool = drv "tool" { }; };
		}; }`}, selector: onPush("default"), prepare: func(j *job) {
			j.task.CISystems = &agentapi.Map[string, agentapi.UnitValue]{"x86_64-linux": {}}
		}},
		{name: "import-from-derivation", files: []string{"default.nix", `let` + common + `
			generated = name: text: drv name { args = [ "-c" "printf '%s' '${text}' > $out" ]; dep = drv "generator" { }; };
		in {
			a = drv "a" { };
			b = drv (import (generated "plan.nix" "\"planned\"")) { };
			c = drv "c" { };
			d = drv (import (drv "bad-plan" { args = [ "-c" "exit 1" ]; })) { };
			e = drv "e" { };
		}`}, prepare: func(j *job) { j.co.unordered = true }},
		{name: "import-from-derivation-blocking", files: []string{"default.nix", `let` + common + `
			names = import (drv "names.nix" { args = [ "-c" "echo '[ \"x\" \"y\" ]' > $out" ]; });
		in builtins.listToAttrs (map (name: { inherit name; value = drv name { }; }) names)`}},
		{name: "import-from-derivation-root-fails", files: []string{"default.nix", `let` + common + `in
			import (drv "bad-root" { args = [ "-c" "exit 1" ]; })`}},
		{name: "no-nix-file", files: []string{"README", "nothing here"}},
		{name: "ambiguous", files: []string{"ci.nix", "1", "nix/ci.nix", "2"}},
		{name: "root-is-a-list", files: []string{"ci.nix", "[ 1 ]"}},
		{name: "syntax-error", files: []string{"ci.nix", "{ a = ; }"}},
		{name: "default-system", files: []string{"ci-default-system.txt", "aarch64-darwin\n", "default.nix", `let` + common + `in { a = drv builtins.currentSystem { }; }`}},
		{name: "bad-default-system", files: []string{"ci-default-system.txt", "a\nb", "default.nix", `{ }`}},
	}
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				j := newJob(t, n, test.files...)
				if test.selector != (agentapi.Selector{}) {
					j.task.Selector = test.selector
				}
				if test.prepare != nil {
					test.prepare(j)
				}
				j.successful(j.run())
				j.golden(test.name)
			})
		}
	})
}

// git makes a repository of files and returns its directory and commit.
func gitRepository(t *testing.T, s *testnix.Store, files ...string) (dir, rev string) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("SKIP: no git in PATH")
	}
	dir = filepath.Join(s.Dir(), "files", "repo")
	for i := 0; i+1 < len(files); i += 2 {
		s.File("repo/"+files[i], files[i+1])
	}
	git := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=N", "-c", "user.email=n@n.invalid", "-c", "commit.gpgsign=false"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", "-b", "main")
	git("add", ".")
	git("commit", "-q", "-m", "first")
	return dir, git("rev-parse", "HEAD")
}

func TestFlakeJob(t *testing.T) {
	t.Parallel()
	flake := `{ outputs = { self }: let` + strings.ReplaceAll(common, "builtins.currentSystem", `"x86_64-linux"`) + `in {
		packages.x86_64-linux.default = drv "rev-${if self ? rev then "known" else "unknown"}" { src = self; };
		checks.x86_64-linux.broken = throw "thrown on purpose";
		herculesCI = { primaryRepo, ... }: { ciSystems = [ "x86_64-linux" ]; };
		effects.deploy = drv "deploy" { isEffect = true; };
	}; }`
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		for _, test := range []struct {
			name     string
			selector agentapi.Selector
		}{{"flake-config", agentapi.Selector{ConfigOrLegacy: &agentapi.Unit{}}}, {"flake-push", onPush("default")}} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				j := newJob(t, n)
				dir, rev := gitRepository(t, j.store, "flake.nix", flake)
				j.task.IsFlakeJob = true
				j.task.OtherInputs = nil
				j.task.Inputs["src"] = agentapi.ImmutableInput{Git: &agentapi.ImmutableGitInput{Rev: rev, Ref: "refs/heads/main", HTTPURL: "file://" + dir}}
				j.task.Selector = test.selector
				j.successful(j.run())
				j.golden(test.name)
			})
		}
	})
}
