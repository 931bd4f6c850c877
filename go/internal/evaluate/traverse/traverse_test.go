package traverse_test

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/evaluate/traverse"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/evaluator"
	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

var update = flag.Bool("update", false, "write golden files")

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// project is a repository under test with a store of its own.
type project struct {
	writer *daemon.Writer
	t      testing.TB
	store  *testnix.Store
	dir    string
	job    traverse.Job
	deps   traverse.Deps

	whole bool // show messages in full

	mu      sync.Mutex
	events  []agentapi.EvaluateEvent
	log     []daemon.Event
	onEvent func(agentapi.EvaluateEvent)
	built   map[string]func() error
	realise func(ctx context.Context, p daemon.DerivedPath) error
}

var common = `{
  drv = name: attrs: derivation ({
    inherit name;
    system = "x86_64-linux";
    builder = "/bin/sh";
    args = [ "-c" "echo ${name} > $out" ];
  } // attrs);
}
`

// newProject writes files (name, contents, …) into a checkout. ci.nix, default.nix or flake.nix is what is evaluated.
func newProject(t testing.TB, n testnix.Nix, files ...string) *project {
	t.Helper()
	s := testnix.New(t, testnix.WithNix(n))
	p := &project{t: t, store: s, dir: filepath.Join(s.Dir(), "files", "project"), built: map[string]func() error{}}
	s.File("project/common.nix", common)
	for i := 0; i+1 < len(files); i += 2 {
		s.File("project/"+files[i], files[i+1])
	}
	legacy := agentapi.Selector{ConfigOrLegacy: &agentapi.Unit{}}
	p.job = traverse.Job{
		Source: traverse.GitSource{
			OutPath: p.dir, Ref: "refs/heads/main", Rev: "3f9b0c4de21a7785d60c1b9ae2f4471c8d5e6a90",
			RemoteHTTPURL: "https://forge.example/acme/widgets.git", Owner: "acme", Name: "widgets",
		},
		Selector: legacy, APIBaseURL: "https://ci.example", AllowedPaths: []string{p.dir}, Directory: p.dir,
	}
	for _, name := range []string{"ci.nix", "flake.nix", "default.nix"} {
		path := filepath.Join(p.dir, name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if name == "flake.nix" {
			p.job.Flake = traverse.LocalFlakeRef(p.dir)
			p.job.IsFlakeJob = true
		} else {
			p.job.File = path
		}
		break
	}
	p.writer = daemon.NewWriter(s.Endpoint(), daemon.Options{}, nil)
	t.Cleanup(func() { _ = p.writer.Close() })
	p.deps = traverse.Deps{
		Evaluator: evaluator.Config{
			Program: s.Program("nix"), Env: s.Env(),
			Settings: map[string]string{"restrict-eval": "true", "allowed-uris": "ssh:// https:// git+ssh:// git+https:// github:"},
		},
		Limits:    traverse.Limits{Workers: 2},
		StoreRoot: s.Root(),
		Emit: func(_ context.Context, e agentapi.EvaluateEvent) error {
			p.mu.Lock()
			p.events = append(p.events, e)
			p.mu.Unlock()
			if p.onEvent != nil {
				p.onEvent(e)
			}
			return nil
		},
		Realise: p.build,
		Log: func(e daemon.Event) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.log = append(p.log, e)
		},
		StartProxy: p.proxy,
		Flush:      p.writer.Flush,
	}
	return p
}

func (p *project) proxy(ctx context.Context, worker int, onRealise func(context.Context, []daemon.DerivedPath) error) (string, func(), error) {
	sock := filepath.Join(p.store.Dir(), fmt.Sprintf("w%d-%d", worker, len(mustGlob(p.store.Dir()+"/w*"))))
	l, err := net.Listen("unix", sock)
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	proxy := &daemon.Proxy{Upstream: p.store.Endpoint(), Hooks: daemon.Hooks{Realise: onRealise}, Writer: p.writer}
	wg.Go(func() { _ = proxy.Serve(ctx, l) })
	return "unix://" + sock + "?root=" + p.store.Root(), func() { cancel(); wg.Wait() }, nil
}

func mustGlob(pattern string) []string {
	m, err := filepath.Glob(pattern)
	if err != nil {
		panic(err)
	}
	return m
}

// build realises for real, each path once.
func (p *project) build(ctx context.Context, path daemon.DerivedPath, _ bool) error {
	p.mu.Lock()
	once := p.built[path.Path]
	if once == nil {
		once = sync.OnceValue(func() error {
			if _, err := p.store.TryRun("nix-store", "--realise", path.Path); err != nil {
				return &traverse.BuildError{Derivation: path.Path}
			}
			return nil
		})
		p.built[path.Path] = once
	}
	p.mu.Unlock()
	if p.realise != nil {
		if err := p.realise(ctx, path); err != nil {
			return err
		}
	}
	return once()
}

// walk runs the walk and gives its events in short lines.
func (p *project) walk() []string {
	p.t.Helper()
	if err := traverse.Walk(p.t.Context(), p.job, p.deps); err != nil {
		p.t.Fatal(err)
	}
	return p.lines()
}

func (p *project) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var lines []string
	for _, e := range p.events {
		lines = append(lines, p.line(e))
	}
	return lines
}

// line is an event without what differs from one version of Nix to the next.
func (p *project) line(e agentapi.EvaluateEvent) string {
	drv := func(s string) string { return s[min(len(s), 44):] }
	show := func(s string) string {
		s = evaluator.StripANSI(strings.NewReplacer(p.dir, "DIR", p.store.Root(), "").Replace(s))
		if p.whole {
			return hashes.ReplaceAllString(blanks.ReplaceAllString(s, "\n"), "/nix/store/HASH-")
		}
		first, _, _ := strings.Cut(s, "\n")
		return first
	}
	switch {
	case e.Attribute != nil:
		return fmt.Sprintf("attribute %q %s %s", e.Attribute.ExpressionPath, e.Attribute.Typ, drv(e.Attribute.DerivationPath))
	case e.AttributeEffect != nil:
		var secrets []string
		for k, v := range e.AttributeEffect.SecretsToUse {
			if v.GitToken != nil {
				secrets = append(secrets, k+"=git")
			} else {
				secrets = append(secrets, k+"="+v.SimpleSecret.Name)
			}
		}
		slices.Sort(secrets)
		return fmt.Sprintf("effect %q %s %v", e.AttributeEffect.ExpressionPath, drv(e.AttributeEffect.DerivationPath), secrets)
	case e.AttributeError != nil:
		x := e.AttributeError
		s := fmt.Sprintf("error %q %s", x.ExpressionPath, show(x.ErrorMessage))
		if x.ErrorDerivation != nil {
			s += " drv=" + drv(*x.ErrorDerivation)
		}
		if *x.ErrorType != "SomeException" {
			s += " type=" + *x.ErrorType
		}
		return s
	case e.AttributeIFD != nil:
		x := e.AttributeIFD
		return fmt.Sprintf("ifd %d %q %s %s %v", x.Index, x.ExpressionPath, drv(x.DerivationPath), x.DerivationOutput, x.Done)
	case e.Message != nil:
		return fmt.Sprintf("message %d %s %s", e.Message.Index, e.Message.Typ, show(e.Message.Message))
	case e.JobConfig != nil:
		return "config"
	case e.OnPushHandlerEvent != nil:
		x := e.OnPushHandlerEvent
		return fmt.Sprintf("onPush %q flake=%v %s", x.HandlerName, x.IsFlake, inputs(x.HandlerExtraInputs))
	case e.OnScheduleHandlerEvent != nil:
		x := e.OnScheduleHandlerEvent
		w := x.When
		s := fmt.Sprintf("onSchedule %q flake=%v %s", x.HandlerName, x.IsFlake, inputs(x.HandlerExtraInputs))
		if w.Minute != nil {
			s += fmt.Sprintf(" minute=%d", *w.Minute)
		}
		if w.Hour != nil {
			s += fmt.Sprintf(" hour=%d", *w.Hour)
		}
		if w.DayOfWeek != nil {
			s += fmt.Sprintf(" dayOfWeek=%s", *w.DayOfWeek)
		}
		if w.DayOfMonth != nil {
			s += fmt.Sprintf(" dayOfMonth=%d", *w.DayOfMonth)
		}
		return s
	}
	return fmt.Sprintf("unexpected %+v", e)
}

var (
	hashes = regexp.MustCompile("/nix/store/[0-9a-z]{32}-")
	blanks = regexp.MustCompile(`\n *\n+ *|\n +`)
)

func inputs(m agentapi.Map[string, agentapi.InputDeclaration]) string {
	var s []string
	for k, v := range m {
		ref := "-"
		if v.SiblingInput.Ref != nil {
			ref = *v.SiblingInput.Ref
		}
		s = append(s, k+"="+v.SiblingInput.Project+"@"+ref)
	}
	slices.Sort(s)
	return fmt.Sprint(s)
}

// golden compares events with those in testdata, which are the same for all versions of Nix.
func golden(t *testing.T, got []string) {
	t.Helper()
	name, _, _ := strings.Cut(strings.ReplaceAll(t.Name(), "/nix-", "\x00"), "\x00")
	file := filepath.Join("testdata", strings.ReplaceAll(name, "/", "-")+".golden")
	text := strings.Join(got, "\n") + "\n"
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(b), "\n"), strings.Split(text, "\n")); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

func want(t *testing.T, got []string, lines ...string) {
	t.Helper()
	if d := cmp.Diff(lines, got); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}
