package evaluate_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"hercules/internal/evaluate"
	"hercules/internal/evaluate/report"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/substituter"
	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

const chain = `let` + common + `
	low = drv "low" { };
	mid = drv "mid" { inherit low; };
	top = drv "top" { inherit mid; };
`

// counting counts how often a cache is asked.
type counting struct {
	report.Cache
	mu      sync.Mutex
	queries int
	paths   int
}

func (c *counting) Query(ctx context.Context, paths []string) (map[string]*daemon.PathInfo, error) {
	c.mu.Lock()
	c.queries++
	c.paths += len(paths)
	c.mu.Unlock()
	return c.Cache.Query(ctx, paths)
}

// What a real binary cache has is asked for in few round trips, and not built but for the attribute itself.
func TestBinaryCache(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		j := newJob(t, n, "default.nix", chain+`in { inherit top; other = drv "other" { inherit low; }; }`)
		dir := filepath.Join(j.store.Dir(), "cache")
		out := j.store.Run("nix-build", "--quiet", "--no-out-link", "--expr", chain+"in mid")
		j.store.Copy("file://"+dir, out)
		files := httptest.NewServer(http.FileServer(http.Dir(dir)))
		t.Cleanup(files.Close)
		cache, err := substituter.Open(t.Context(), files.URL, substituter.Options{Nix: j.store.Program("nix-daemon")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cache.Close() })
		counted := &counting{Cache: cache}
		j.deps.Caches = []report.Cache{counted}
		j.successful(j.run())
		lines := j.co.lines()
		for _, want := range []string{
			"SubstitutionQueryResult mid!out true", "SubstitutionQueryResult top!out false", "SubstitutionQueryResult other!out false",
			"BuildRequest top force=false", "BuildRequest other force=false",
			"DerivationInfo low inputs=[] outputs=1",
		} {
			if !slices.Contains(lines, want) {
				t.Errorf("missing: %s", want)
			}
		}
		for _, l := range lines {
			if strings.HasPrefix(l, "BuildRequest mid") {
				t.Errorf("requested although available: %s", l)
			}
		}
		if counted.queries > 4 {
			t.Errorf("%d queries for %d paths", counted.queries, counted.paths)
		}
	})
}

// An import is substituted from a cache without a build.
func TestImportFromACache(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		plan := `let` + common + `in drv "plan.nix" { args = [ "-c" "echo '\"planned\"' > $out" ]; }`
		other := testnix.New(t, testnix.WithNix(n))
		dir := filepath.Join(other.Dir(), "cache")
		other.Copy("file://"+dir, other.Run("nix-build", "--quiet", "--no-out-link", "--expr", plan))

		j := newJob(t, n, "default.nix", `let`+common+`in { a = drv (import (`+plan+`)) { }; }`)
		j.deps.DaemonSettings = map[string]string{"substituters": "file://" + dir + "?trusted=1"}
		j.co.build = nil
		j.co.onPoll = func(drv string) { t.Errorf("a build of %s was waited for", drv) }
		j.successful(j.run())
		if lines := j.co.lines(); !slices.Contains(lines, `Attribute ["a"] planned Regular`) || !slices.Contains(lines, "BuildRequired plan.nix!out") {
			t.Errorf("got %q", lines)
		}
	})
}

// Built elsewhere and not to be had: the coordinator is asked to build it again.
func TestImportIsBuiltAgainWhenItsOutputIsLost(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		j := newJob(t, n, "default.nix", `let`+common+`in { a = drv (import (drv "plan.nix" { args = [ "-c" "echo '\"planned\"' > $out" ]; })) { }; }`)
		builds := 0
		real := j.co.build
		j.co.build = func(drv string) error {
			if builds++; builds == 1 {
				return nil // on a machine that keeps it to itself
			}
			return real(drv)
		}
		j.successful(j.run())
		lines := j.co.lines()
		for _, want := range []string{`Attribute ["a"] planned Regular`, "BuildRequest plan.nix force=false", "BuildRequest plan.nix force=true"} {
			if !slices.Contains(lines, want) {
				t.Errorf("missing %s in %q", want, lines)
			}
		}
		if builds != 2 {
			t.Errorf("%d builds", builds)
		}
	})
}

// Derivations are pushed before their builds are requested.
func TestPush(t *testing.T) {
	t.Parallel()
	j := newJob(t, testnix.Versions(t)[0], "default.nix", chain+`in { inherit top; shell = drv "shell" { buildDependenciesOnly = true; inherit low; }; }`)
	p := &pusher{}
	j.deps.Pusher = p
	j.co.onEvent = func(e *agentapi.EvaluateEvent) {
		if e.BuildRequest != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			drv := name(e.BuildRequest.DerivationPath)
			if len(p.pushed) == 0 || drv != "low" && !slices.Contains(p.pushed, "top") {
				t.Errorf("%s was requested when only %v had been pushed", drv, p.pushed)
			}
		}
	}
	j.successful(j.run())
	slices.Sort(p.pushed)
	if got := strings.Join(p.pushed, " "); got != "shell top" {
		t.Errorf("pushed %s", got)
	}
}

type pusher struct {
	mu     sync.Mutex
	pushed []string
}

func (p *pusher) PushClosure(_ context.Context, drvs []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range drvs {
		p.pushed = append(p.pushed, name(d))
	}
	return nil
}

// A store on another machine has no files here: derivations are read through its daemon.
func TestDerivationsAreReadThroughTheDaemon(t *testing.T) {
	t.Parallel()
	j := newJob(t, testnix.Versions(t)[0], "default.nix", chain+`in { inherit top; }`)
	j.store.Run("nix-instantiate", "--quiet", "--expr", chain+"in top")
	endpoint := j.store.Endpoint()
	endpoint.Root = filepath.Join(j.store.Dir(), "nowhere")
	read, done := evaluate.DerivationReader(endpoint)
	defer done()
	drv := j.store.Run("nix-instantiate", "--quiet", "--expr", chain+"in top")
	d, err := read(t.Context(), drv)
	if err != nil {
		t.Fatal(err)
	}
	if d.Env["name"] != "top" || len(d.InputDrvs) != 1 {
		t.Errorf("got %+v", d)
	}
	if _, err := read(t.Context(), "/nix/store/"+strings.Repeat("0", 32)+"-gone.drv"); err == nil || !strings.Contains(err.Error(), "from the daemon") {
		t.Errorf("got %v", err)
	}
}

// Sockets have short names, work directories need not.
func TestLongWorkDirectory(t *testing.T) {
	t.Parallel()
	j := newJob(t, testnix.Versions(t)[0], "default.nix", chain+`in { inherit top; }`)
	j.work = filepath.Join(j.work, strings.Repeat("a-long-name/", 12))
	j.deps.WorkDirectory = j.work
	j.successful(j.run())
	if !slices.Contains(j.co.lines(), `Attribute ["top"] top Regular`) {
		t.Errorf("got %q", j.co.lines())
	}
}

// The evaluator's git and Nix get the task's credentials, and nothing else of the task's is left on disk.
func TestCredentials(t *testing.T) {
	t.Parallel()
	j := newJob(t, testnix.Versions(t)[0])
	j.deps.NetrcFile = j.store.File("netrc", "machine forge.example\n  login operator password 0p\ndefault login d password d\n")
	j.deps.NetrcLines = []string{"machine acme.cachix.org login authtoken password c4ch1x"}
	creds := agentapi.List[agentapi.Credential]{
		{URL: "https://forge.example/acme/widgets.git", Username: "x-access-token", Password: "t0k3n"},
		{URL: "https://other.example:8443/x.git", Username: "u@x", Password: "p:/@"},
		{URL: "no host", Username: "u", Password: "p"},
		{URL: "https://evil.example/", Username: "u", Password: "p\nmachine forge.example login evil password evil"},
	}
	j.task.ExtraGitCredentials = &creds
	files, err := evaluate.WriteNetrc(j.task, j.deps)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		files.Netrc: "machine forge.example\n  login operator password 0p\ndefault login d password d\n" +
			"machine acme.cachix.org login authtoken password c4ch1x\n" +
			"machine forge.example\nlogin x-access-token\npassword t0k3n\n" +
			"machine other.example\nlogin u@x\npassword p:/@\n",
		files.Store: "https://operator:0p@forge.example\nhttps://authtoken:c4ch1x@acme.cachix.org\nhttps://x-access-token:t0k3n@forge.example\n" +
			"https://u%40x:p%3A%2F%40@other.example\nhttps://u%40x:p%3A%2F%40@other.example:8443\n",
	}
	for path, text := range want {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != text {
			t.Errorf("%s: got %q, want %q", path, got, text)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
	}
	// git itself must understand it.
	git := func(in string) string {
		cmd := j.store.Command("/usr/bin/env", "git", "credential", "fill")
		cmd.Env = append(cmd.Env, files.Env...)
		cmd.Stdin = strings.NewReader(in)
		out, _ := cmd.Output()
		return string(out)
	}
	if got := git("protocol=https\nhost=other.example:8443\n\n"); !strings.Contains(got, "username=u@x\npassword=p:/@\n") {
		t.Errorf("git got %q", got)
	}
	if got := git("protocol=https\nhost=forge.example\n\n"); !strings.Contains(got, "username=operator\npassword=0p\n") {
		t.Errorf("git got %q", got)
	}
	// Plain http is denied, whoever asks.
	cmd := j.store.Command("/usr/bin/env", "git", "ls-remote", "http://forge.example/x.git")
	cmd.Env = append(cmd.Env, files.Env...)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "transport 'http' not allowed") {
		t.Errorf("git over http: %v %s", err, out)
	}
	files.Remove()
	if left := leftOver(t, j.work); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
