package report_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/evaluate/report"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/derivation"
	"hercules/internal/nix/substituter"
	"hercules/internal/wire/agentapi"
)

const hash = "00000000000000000000000000000000"

func drvPath(name string) string { return "/nix/store/" + hash + "-" + name + ".drv" }

// short is the inverse of drvPath.
func short(path string) string {
	return strings.TrimSuffix(strings.TrimPrefix(path, "/nix/store/"+hash+"-"), ".drv")
}

func outPath(name, output string) string {
	if output != "out" {
		name += "-" + output
	}
	return "/nix/store/" + hash + "-" + name
}

// world is a set of derivations, written as "a: b c!dev" lines, all with outputs out and dev.
type world map[string]*derivation.Derivation

func newWorld(text string) world {
	w := world{}
	for line := range strings.Lines(text) {
		name, inputs, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		name = strings.TrimSpace(name)
		d := &derivation.Derivation{
			Platform: "x86_64-linux", Builder: "/bin/sh", InputSrcs: []string{outPath("src", "out")}, InputDrvs: map[string][]string{},
			Outputs: map[string]derivation.Output{"out": {Path: outPath(name, "out")}, "dev": {Path: outPath(name, "dev")}},
			Env:     map[string]string{"requiredSystemFeatures": "kvm  big-parallel"},
		}
		for in := range strings.FieldsSeq(inputs) {
			in, output, ok := strings.Cut(in, "!")
			if !ok {
				output = "out"
			}
			d.InputDrvs[drvPath(in)] = append(d.InputDrvs[drvPath(in)], output)
		}
		w[drvPath(name)] = d
	}
	return w
}

func (w world) read(_ context.Context, path string) (*derivation.Derivation, error) {
	if d := w[path]; d != nil {
		return d, nil
	}
	return nil, os.ErrNotExist
}

// cache has some output paths.
type cache struct {
	uri  string
	fail error

	mu      sync.Mutex
	have    map[string]bool
	asked   map[string]int
	queries int
}

func newCache(uri string, outputs ...string) *cache {
	c := &cache{uri: uri, have: map[string]bool{}, asked: map[string]int{}}
	for _, o := range outputs {
		name, output, ok := strings.Cut(o, "!")
		if !ok {
			output = "out"
		}
		c.have[outPath(name, output)] = true
	}
	return c
}

func (c *cache) URI() string { return c.uri }

func (c *cache) Query(_ context.Context, paths []string) (map[string]*daemon.PathInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queries++
	if c.fail != nil {
		return nil, c.fail
	}
	m := map[string]*daemon.PathInfo{}
	for _, p := range paths {
		c.asked[p]++
		if c.have[p] {
			m[p] = &daemon.PathInfo{Path: p, NarHash: make([]byte, 32), NarSize: 7, References: []string{p, outPath("ref", "out")}}
		}
	}
	return m, nil
}

type pusher struct {
	events *report.Collector
	pushed []string
	fail   error
}

func (p *pusher) PushClosure(_ context.Context, drvs []string) error {
	for _, d := range drvs {
		p.pushed = append(p.pushed, short(d))
	}
	return p.fail
}

func TestPlan(t *testing.T) {
	t.Parallel()
	const w = `
		top: mid lib!dev
		mid: low lib
		lib: low
		low:
		other: mid
		shell: lib low
		alone:
	`
	infos := func(names string) (lines []string) {
		for n := range strings.FieldsSeq(names) {
			lines = append(lines, "info "+n)
		}
		return lines
	}
	tests := []struct {
		name   string
		whole  string
		inputs string // attributes of which only the inputs count, after the others
		caches []*cache
		want   []string // without DerivationInfo and the answers of caches
		infos  string
		rounds int
	}{
		{name: "no caches: everything is built, inputs first", whole: "top", infos: "low lib mid top", want: []string{"build low", "build lib", "build mid", "build top"}},
		{
			name: "all there: only the attribute is requested", whole: "top", infos: "low lib mid top", rounds: 1,
			caches: []*cache{newCache("c", "top", "top!dev", "mid", "mid!dev", "lib", "lib!dev", "low", "low!dev")}, want: []string{"build top"},
		},
		{
			name: "inputs there", whole: "top", infos: "low lib mid top", rounds: 1,
			caches: []*cache{newCache("c", "mid", "lib!dev")}, want: []string{"build top"},
		},
		{
			name: "what is available is not descended into", whole: "top", infos: "low lib mid top", rounds: 2,
			caches: []*cache{newCache("c", "mid", "low")}, want: []string{"build lib", "build top"},
		},
		{
			name: "another output is not enough", whole: "top", infos: "low lib mid top", rounds: 2,
			caches: []*cache{newCache("c", "mid", "low", "lib")}, want: []string{"build lib", "build top"},
		},
		{
			name: "the second cache has it", whole: "top", infos: "low lib mid top", rounds: 1,
			caches: []*cache{newCache("c", "mid"), newCache("d", "lib!dev")}, want: []string{"build top"},
		},
		{
			name: "everything is requested once", whole: "top other top", infos: "low lib mid top other", want: []string{"build low", "build lib", "build mid", "build top", "build other"},
		},
		{
			name: "an attribute that is an input of another", whole: "other mid", infos: "low lib mid other", rounds: 2,
			caches: []*cache{newCache("c", "mid", "low")}, want: []string{"build other", "build lib", "build mid"},
		},
		{
			name: "a shell's inputs are requested although they are available", inputs: "shell", infos: "low lib shell", rounds: 1,
			caches: []*cache{newCache("c", "lib", "lib!dev", "low", "low!dev")}, want: []string{"build lib", "build low"},
		},
		{
			name: "from a shell's inputs on it goes as usual", inputs: "other", infos: "low lib mid other", rounds: 2,
			caches: []*cache{newCache("c", "low")}, want: []string{"build lib", "build mid"},
		},
		{
			name: "a shell that is also an attribute", whole: "shell", inputs: "shell", infos: "low lib shell", rounds: 1,
			caches: []*cache{newCache("c", "lib", "low")}, want: []string{"build shell", "build lib", "build low"},
		},
		{name: "a leaf", whole: "alone", infos: "alone", rounds: 1, caches: []*cache{newCache("c")}, want: []string{"build alone"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := &posts{t: t}
			events := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
			push := &pusher{events: events}
			var caches []report.Cache
			for _, c := range test.caches {
				caches = append(caches, c)
			}
			gate := make(chan struct{})
			w := newWorld(w)
			planner := report.NewPlanner(t.Context(), report.PlannerConfig{
				Read: func(ctx context.Context, path string) (*derivation.Derivation, error) {
					<-gate // until all are queued, so that they make one batch
					return w.read(ctx, path)
				},
				Events: events, Caches: caches, Pusher: push, Warn: func(s string) { t.Error(s) },
			})
			add := func(names string, kind report.Kind) {
				for n := range strings.FieldsSeq(names) {
					planner.Add(drvPath(n), kind)
				}
			}
			add(test.whole, report.Whole)
			add(test.inputs, report.Inputs)
			close(gate)
			if err := planner.Finish(); err != nil {
				t.Fatal(err)
			}
			if err := events.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			lines := p.lines()
			var got, gotInfos []string
			answers := map[string]bool{}
			for _, l := range lines {
				switch {
				case strings.HasPrefix(l, "info"):
					gotInfos = append(gotInfos, l)
				case strings.HasPrefix(l, "cache"):
					if answers[l] {
						t.Errorf("twice: %s", l)
					}
					answers[l] = true
				default:
					got = append(got, l)
				}
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(infos(test.infos), gotInfos); d != "" {
				t.Error(d)
			}
			for _, c := range test.caches {
				for path, n := range c.asked {
					if n != 1 {
						t.Errorf("%s was asked %d times for %s", c.uri, n, path)
					}
				}
				if c.queries > test.rounds+1 { // the attributes may have come in two batches
					t.Errorf("%s was asked %d times, want %d", c.uri, c.queries, test.rounds)
				}
				if len(answers) != len(test.caches)*len(c.asked) {
					t.Errorf("%d answers for %d questions", len(answers), len(c.asked))
				}
			}
			for name := range strings.FieldsSeq(test.whole + " " + test.inputs) {
				if !slices.Contains(push.pushed, name) {
					t.Errorf("%s was not pushed", name)
				}
			}
		})
	}
}

func TestDerivationInfoAndOutputInfo(t *testing.T) {
	t.Parallel()
	p := &posts{t: t}
	events := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
	w := newWorld("a: b!out b!dev\nb:")
	b := w[drvPath("b")]
	b.Outputs = map[string]derivation.Output{
		"out": {Path: outPath("b", "out"), HashAlgo: "sha256", Hash: strings.Repeat("0", 64)},
		"dev": {HashAlgo: "r:sha256"},
	}
	b.Env = map[string]string{"__json": `{"requiredSystemFeatures":["one two","three"]}`}
	planner := report.NewPlanner(t.Context(), report.PlannerConfig{
		Read: w.read, Events: events, Caches: []report.Cache{newCache("https://user:secret@cache.example", "b", "a")},
	})
	planner.Add(drvPath("a"), report.Whole)
	if err := planner.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := events.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	str := func(s string) *string { return &s }
	var got []agentapi.EvaluateEvent
	for _, batch := range p.batches {
		for _, e := range batch {
			if e.DerivationInfo != nil || e.SubstitutionQueryResult != nil && e.SubstitutionQueryResult.OutputInfo != nil {
				got = append(got, e)
			}
		}
	}
	info := func(of string) *agentapi.SubstitutionQueryResult {
		refs := agentapi.List[string]{hash + "-" + of, hash + "-ref"}
		return &agentapi.SubstitutionQueryResult{
			StoreURI: "https://cache.example", Derivation: drvPath(of), OutputName: "out",
			OutputInfo: &agentapi.OutputInfo{
				Deriver: drvPath(of), Name: "out", Path: outPath(of, "out"), Hash: "sha256:" + strings.Repeat("0", 52), Size: 7, References: &refs,
			},
		}
	}
	want := []agentapi.EvaluateEvent{
		{DerivationInfo: &agentapi.DerivationInfo{
			DerivationPath: drvPath("b"), Platform: "x86_64-linux", RequiredSystemFeatures: agentapi.List[string]{"one two", "three"},
			InputDerivations: agentapi.Map[string, agentapi.List[string]]{}, InputSources: agentapi.List[string]{outPath("src", "out")},
			Outputs: agentapi.Map[string, agentapi.DerivationInfoOutput]{"dev": {}, "out": {Path: str(outPath("b", "out")), IsFixed: true}},
		}},
		{DerivationInfo: &agentapi.DerivationInfo{
			DerivationPath: drvPath("a"), Platform: "x86_64-linux", RequiredSystemFeatures: agentapi.List[string]{"big-parallel", "kvm"},
			InputDerivations: agentapi.Map[string, agentapi.List[string]]{drvPath("b"): {"dev", "out"}}, InputSources: agentapi.List[string]{outPath("src", "out")},
			Outputs: agentapi.Map[string, agentapi.DerivationInfoOutput]{"dev": {Path: str(outPath("a", "dev"))}, "out": {Path: str(outPath("a", "out"))}},
		}},
		{SubstitutionQueryResult: info("a")},
		{SubstitutionQueryResult: info("b")},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := p.lines(); !slices.Contains(got, "build b") {
		t.Errorf("an output whose path is not known must be built: %v", got)
	}
}

// A few round trips, not one a path: of a wide graph in a cache, and of an attribute set.
func TestQuestionsAreBatched(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for i := range 500 {
		fmt.Fprintf(&text, "top%d: dep%d common\ndep%d: deep%d\ndeep%d: common\n", i, i, i, i, i)
	}
	text.WriteString("common:\n")
	c := newCache("c", "common")
	for i := range 500 {
		c.have[outPath(fmt.Sprintf("dep%d", i), "out")] = true
	}
	p := &posts{t: t}
	events := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
	w := newWorld(text.String())
	planner := report.NewPlanner(t.Context(), report.PlannerConfig{Read: w.read, Events: events, Caches: []report.Cache{c}})
	for i := range 500 {
		planner.Add(drvPath(fmt.Sprintf("top%d", i)), report.Whole)
	}
	if err := planner.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := events.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.queries > 10 {
		t.Errorf("%d queries for 500 attributes", c.queries)
	}
	if n := len(c.asked); n != 500*2+500+1 { // own outputs, dep, common
		t.Errorf("asked for %d paths", n)
	}
}

func TestCacheThatFailsIsNotFatal(t *testing.T) {
	t.Parallel()
	p := &posts{t: t}
	events := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
	bad := newCache("https://u:p@bad.example")
	bad.fail = errors.New("502 Bad Gateway")
	gone := newCache("https://gone.example")
	gone.fail = &substituter.UnreachableError{Err: errors.New("connection refused")}
	var text strings.Builder
	for i := range 10 {
		fmt.Fprintf(&text, "a%d: a%d\n", i, i+1)
	}
	text.WriteString("a10:\n")
	var warnings []string
	planner := report.NewPlanner(t.Context(), report.PlannerConfig{
		Read: newWorld(text.String()).read, Events: events, Caches: []report.Cache{bad, newCache("good", "a9"), gone},
		Warn: func(s string) { warnings = append(warnings, s) },
	})
	planner.Add(drvPath("a0"), report.Whole)
	if err := planner.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := events.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if bad.queries != 3 || gone.queries != 1 || len(warnings) != 4 {
		t.Errorf("%d and %d queries, warnings %q", bad.queries, gone.queries, warnings)
	}
	for _, w := range warnings {
		if strings.HasSuffix(w, "not asked again in this evaluation") && strings.Contains(w, "gone.example") {
			continue
		}
		if strings.Contains(w, "u:p") || !strings.Contains(w, "https://bad.example does not answer") {
			t.Errorf("warning %q", w)
		}
	}
	for _, l := range p.lines() {
		if strings.Contains(l, "bad.example") {
			t.Errorf("an answer of a cache that gave none: %s", l)
		}
	}
	if lines := p.lines(); lines[len(lines)-1] != "build a0" || !slices.Contains(lines, "build a8") || slices.Contains(lines, "build a9") {
		t.Errorf("got %v", lines)
	}
}

func TestPlanningFailuresAreReported(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		read   report.ReadDerivation
		pusher *pusher
		want   string
	}{
		{"unreadable", newWorld("a: gone").read, nil, "derivation " + drvPath("gone") + ": file does not exist"},
		{"panic", func(context.Context, string) (*derivation.Derivation, error) { panic("boo") }, nil, "panic: boo"},
		{"push", newWorld("a:").read, &pusher{fail: errors.New("no space")}, "pushing derivations to the binary caches: no space"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := &posts{t: t}
			events := report.NewCollector(t.Context(), report.CollectorConfig{Post: p.post})
			defer func() { _ = events.Close(t.Context()) }()
			var failed error
			cfg := report.PlannerConfig{Read: test.read, Events: events, Fail: func(err error) { failed = err }}
			if test.pusher != nil {
				cfg.Pusher = test.pusher
			}
			planner := report.NewPlanner(t.Context(), cfg)
			planner.Add(drvPath("a"), report.Whole)
			err := planner.Finish()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
			if failed == nil {
				t.Error("Fail was not called")
			}
			if slices.Contains(p.lines(), "build a") {
				t.Error("a build was requested all the same")
			}
		})
	}
}

// BenchmarkDerivationInfo reads real files and encodes what is posted.
func BenchmarkDerivationInfo(b *testing.B) {
	const n = 20_000
	root := b.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "nix/store"), 0o755); err != nil {
		b.Fatal(err)
	}
	path := func(i int) string { return fmt.Sprintf("/nix/store/%032d-package-%d-1.2.3.drv", i, i) }
	for i := range n {
		d := &derivation.Derivation{
			Platform: "x86_64-linux", Builder: "/nix/store/" + hash + "-bash-5.2/bin/bash", Args: []string{"-e", "/nix/store/" + hash + "-default-builder.sh"},
			InputSrcs: []string{"/nix/store/" + hash + "-default-builder.sh"}, InputDrvs: map[string][]string{},
			Outputs: map[string]derivation.Output{"out": {Path: fmt.Sprintf("/nix/store/%032d-package-%d-1.2.3", i, i)}},
			Env:     map[string]string{},
		}
		for j := range 30 {
			d.Env[fmt.Sprintf("variable%d", j)] = strings.Repeat("value ", 10)
		}
		for j := range min(i, 12) {
			d.InputDrvs[path(i-1-(j*j*j*i)%i)] = []string{"out"}
		}
		if err := os.WriteFile(root+path(i), d.Append(nil), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		bytes, count := 0, 0
		events := report.NewCollector(b.Context(), report.CollectorConfig{Post: func(_ context.Context, events []agentapi.EvaluateEvent) error {
			text, err := agentapi.Marshal(agentapi.List[agentapi.EvaluateEvent](events))
			bytes += len(text)
			count += len(events)
			return err
		}})
		planner := report.NewPlanner(b.Context(), report.PlannerConfig{
			Read:   func(_ context.Context, p string) (*derivation.Derivation, error) { return derivation.Read(root, p) },
			Events: events,
		})
		planner.Add(path(n-1), report.Inputs)
		if err := errors.Join(planner.Finish(), events.Close(b.Context())); err != nil {
			b.Fatal(err)
		}
		if count < n {
			b.Fatalf("%d events of %d bytes", count, bytes)
		}
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "drvs/s")
}
