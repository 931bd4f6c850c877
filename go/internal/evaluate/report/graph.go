package report

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"hercules/internal/nix/derivation"
	"hercules/internal/wire/agentapi"
)

// ReadDerivation gets a derivation by the store path of its .drv file. It is called from several goroutines.
type ReadDerivation func(ctx context.Context, path string) (*derivation.Derivation, error)

// graph is the derivations that an evaluation has met. Of each it keeps what planning needs: a closure can be large.
// It is not for concurrent use.
type graph struct {
	read  ReadDerivation
	warn  func(string)
	nodes map[string]*node
	// strings holds one copy of what many derivations have in common; lists one of output names like ["out"].
	strings map[string]string
	lists   map[string][]string
	// left are nodes that a load which failed did not come to.
	left []*node
}

type node struct {
	path    string
	inputs  []edge   // in order of path
	outputs []output // in order of name
	// platform, features and sources are dropped when they are sent.
	platform          string
	features, sources []string

	loaded, sent bool
	// planned: its inputs have been looked at.
	planned bool
	// requested: a BuildRequest without force was emitted.
	requested bool
	// walked: its missing inputs have been requested before it.
	walked bool
}

type edge struct {
	node    *node
	outputs []string
}

type output struct {
	name, path  string
	fixed       bool
	asked, have bool
}

func newGraph(read ReadDerivation, warn func(string)) *graph {
	return &graph{read: read, warn: warn, nodes: make(map[string]*node), strings: make(map[string]string), lists: make(map[string][]string)}
}

func (g *graph) node(path string) *node {
	n := g.nodes[path]
	if n == nil {
		path = strings.Clone(path) // Not a part of a whole .drv file.
		n = &node{path: path}
		g.nodes[path] = n
	}
	return n
}

// load reads the closures of the derivations, several files at a time.
func (g *graph) load(ctx context.Context, paths []string) error {
	var todo []*node
	queued := make(map[*node]bool)
	want := func(n *node) {
		if !n.loaded && !queued[n] {
			queued[n] = true
			todo = append(todo, n)
		}
	}
	for _, n := range g.left {
		want(n)
	}
	g.left = nil
	for _, p := range paths {
		want(g.node(p))
	}
	if len(todo) == 0 {
		return nil
	}
	type result struct {
		node *node
		drv  *derivation.Derivation
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	workers := max(2, min(8, runtime.GOMAXPROCS(0)))
	jobs, results := make(chan *node, 4*workers), make(chan result, 4*workers)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		close(jobs)
		go func() { wg.Wait(); close(results) }()
		for range results { //nolint:revive // let the workers end
		}
	}()
	started, busy := 0, 0
	for len(todo) > 0 || busy > 0 {
		out, next := jobs, (*node)(nil)
		if len(todo) > 0 {
			next = todo[len(todo)-1]
			if started < workers && busy >= started {
				started++
				wg.Go(func() {
					for n := range jobs {
						r := result{node: n}
						r.err = guard(func() (err error) {
							r.drv, err = g.read(ctx, n.path)
							return err
						})
						results <- r
					}
				})
			}
		} else {
			out = nil
		}
		select {
		case out <- next:
			todo = todo[:len(todo)-1]
			busy++
		case r := <-results:
			busy--
			if r.err != nil {
				for n := range queued {
					if !n.loaded {
						g.left = append(g.left, n)
					}
				}
				return fmt.Errorf("derivation %s: %w", r.node.path, r.err)
			}
			g.fill(r.node, r.drv)
			for _, e := range r.node.inputs {
				want(e.node)
			}
		}
	}
	return nil
}

func (g *graph) fill(n *node, d *derivation.Derivation) {
	n.loaded = true
	if d.DynamicInputs != nil {
		g.warn(fmt.Sprintf("the derivation %s needs outputs of derivations that are themselves results of builds (dynamic derivations), "+
			"which is not supported: it cannot be planned completely", n.path))
	}
	n.platform = g.intern(d.Platform)
	for _, f := range d.RequiredSystemFeatures() {
		n.features = append(n.features, g.intern(f))
	}
	n.sources = make([]string, len(d.InputSrcs))
	for i, s := range d.InputSrcs {
		n.sources[i] = g.intern(s)
	}
	n.inputs = make([]edge, 0, len(d.InputDrvs))
	for path, outputs := range d.InputDrvs {
		n.inputs = append(n.inputs, edge{g.node(path), g.internList(outputs)})
	}
	slices.SortFunc(n.inputs, func(a, b edge) int { return strings.Compare(a.node.path, b.node.path) })
	n.outputs = make([]output, 0, len(d.Outputs))
	for name, o := range d.Outputs {
		n.outputs = append(n.outputs, output{name: g.intern(name), path: strings.Clone(o.Path), fixed: o.HashAlgo != "" && o.Hash != ""})
	}
	slices.SortFunc(n.outputs, func(a, b output) int { return strings.Compare(a.name, b.name) })
}

func (g *graph) intern(s string) string {
	if t, ok := g.strings[s]; ok {
		return t
	}
	s = strings.Clone(s)
	g.strings[s] = s
	return s
}

func (g *graph) internList(list []string) []string {
	key := strings.Join(list, " ") // Output names have no blanks.
	if l, ok := g.lists[key]; ok {
		return l
	}
	l := make([]string, len(list))
	for i, s := range list {
		l[i] = g.intern(s)
	}
	slices.Sort(l)
	g.lists[key] = l
	return l
}

// send emits the DerivationInfo of the closures that were not sent yet, inputs before what needs them.
func (g *graph) send(paths []string, emit func(...agentapi.EvaluateEvent) error) error {
	var visit func(n *node) error
	visit = func(n *node) error {
		if n.sent {
			return nil
		}
		n.sent = true
		for _, e := range n.inputs {
			if err := visit(e.node); err != nil {
				return err
			}
		}
		info := n.info()
		n.platform, n.features, n.sources = "", nil, nil
		return emit(agentapi.EvaluateEvent{DerivationInfo: info})
	}
	for _, p := range paths {
		if err := visit(g.node(p)); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) info() *agentapi.DerivationInfo {
	info := &agentapi.DerivationInfo{
		DerivationPath:         n.path,
		Platform:               n.platform,
		RequiredSystemFeatures: n.features,
		InputDerivations:       make(agentapi.Map[string, agentapi.List[string]], len(n.inputs)),
		InputSources:           n.sources,
		Outputs:                make(agentapi.Map[string, agentapi.DerivationInfoOutput], len(n.outputs)),
	}
	for _, e := range n.inputs {
		info.InputDerivations[e.node.path] = e.outputs
	}
	for i := range n.outputs {
		o := &n.outputs[i]
		var path *string
		if o.path != "" {
			path = &o.path
		}
		info.Outputs[o.name] = agentapi.DerivationInfoOutput{Path: path, IsFixed: o.fixed}
	}
	return info
}

func (n *node) output(name string) *output {
	for i := range n.outputs {
		if n.outputs[i].name == name {
			return &n.outputs[i]
		}
	}
	return nil
}
