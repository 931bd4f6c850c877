package traverse

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"hercules/internal/wire/agentapi"
)

// TestOrder: whatever the order in which attributes are done, their events come out depth first and in order of
// names, and those that wait for a build come out once, later, with what is below them in order.
func TestOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		waits := rapid.Bool().Draw(t, "waits")
		root := &node{}
		o := newOrder(root)
		var got []string
		emit := func(e agentapi.EvaluateEvent) { got = append(got, strings.Join(e.AttributeError.ExpressionPath, "/")) }
		open := []*node{root}
		total := 0
		for len(open) > 0 {
			i := rapid.IntRange(0, len(open)-1).Draw(t, "next")
			n := open[i]
			if waits && !n.waiting && rapid.IntRange(0, 3).Draw(t, "waits now") == 0 {
				n.waiting = true
				o.flush(emit)
				continue
			}
			open = slices.Delete(open, i, i+1)
			total++
			n.events = append(n.events, attributeError(n.path(), "", "", "", ""))
			n.complete, n.waiting = true, false
			if len(n.path()) < 3 {
				for k := range rapid.IntRange(0, 3).Draw(t, "children") {
					c := &node{parent: n, name: fmt.Sprint(k), index: k}
					n.children = append(n.children, c)
					open = append(open, c)
				}
			}
			o.flush(emit)
		}
		if len(o.streams) != 0 {
			t.Fatalf("%d streams are left", len(o.streams))
		}
		if !waits && !slices.IsSorted(got) {
			t.Fatalf("out of order: %q", got)
		}
		seen := map[string]bool{}
		for _, p := range got {
			if seen[p] {
				t.Fatalf("%q twice", p)
			}
			seen[p] = true
			if i := strings.LastIndexByte(p, '/'); i >= 0 && !seen[p[:i]] {
				t.Fatalf("%q before what it is in: %q", p, got)
			}
		}
		if len(got) != total {
			t.Fatalf("%d of %d events", len(got), total)
		}
	})
}

// TestPace: heavy attributes come alone, cheap ones in numbers, and at the end there is work for everybody.
func TestPace(t *testing.T) {
	t.Parallel()
	var p pace
	if n := p.size(10000, 1); n != 8 {
		t.Errorf("at first %d", n)
	}
	for range 20 {
		p.done(8, 8*commandTarget)
	}
	if n := p.size(10000, 1); n != 1 {
		t.Errorf("heavy: %d", n)
	}
	for range 60 {
		p.done(100, 100*commandTarget/1000)
	}
	if n := p.size(10000, 1); n < 400 {
		t.Errorf("cheap: %d", n)
	}
	if n := p.size(8, 2); n != 2 {
		t.Errorf("at the end: %d", n)
	}
}

func TestShowPath(t *testing.T) {
	t.Parallel()
	for want, path := range map[string][]string{
		"":              {},
		"a.b-c.d'_1":    {"a", "b-c", "d'_1"},
		`"a.b".""."1"`:  {"a.b", "", "1"},
		`"\${x}\n\"\\"`: {"${x}\n\"\\"},
	} {
		if got := showPath(path); got != want {
			t.Errorf("%q: got %s, want %s", path, got, want)
		}
	}
}

func FuzzParseResult(f *testing.F) {
	f.Add([]byte(`["a","drv","/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x.drv","Regular"]`))
	f.Add([]byte(`["a","set",["b","c"]]`))
	f.Add([]byte(`["a","skipped"]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseResult(data)
		if err != nil {
			return
		}
		for _, e := range r.events([]string{"x"}, func(string) (lookup, error) {
			return func(string) (string, bool) { return string(data), true }, nil
		}) {
			if e.Attribute != nil && !isDerivationPath(e.Attribute.DerivationPath) {
				t.Errorf("%q", e.Attribute.DerivationPath)
			}
		}
	})
}
