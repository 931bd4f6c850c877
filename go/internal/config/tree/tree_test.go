package tree_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/config/tree"
)

// outline prints names, places and kinds.
func outline(n *tree.Node) string {
	var b strings.Builder
	var walk func(indent string, n *tree.Node)
	walk = func(indent string, n *tree.Node) {
		for _, e := range n.Entries {
			fmt.Fprintf(&b, "%s%s %s", indent, e.Name, e.Pos)
			if e.Value.Kind != tree.Table {
				fmt.Fprintf(&b, " %s", e.Value.AppendJSON(nil))
			}
			b.WriteByte('\n')
			walk(indent+"  ", e.Value)
		}
	}
	walk("", n)
	return b.String()
}

func TestParseTOML(t *testing.T) {
	t.Parallel()
	n, err := tree.ParseTOML([]byte(`z = 1
a = "text\n"
dotted.b.c = 3
when = 2020-01-02
inline = { x = 1.5, y = [ { q = true } ] }

[labels.foo]
"odd name.x" = nan

[[many]]
k = 1
[[many]]
k = 2
`))
	if err != nil {
		t.Fatal(err)
	}
	want := `z 1 1
a 2 "text\n"
dotted 3
  b 3
    c 3 3
when 4 "date or time"
inline 5
  x 5 1.5
  y 5 [{"q":true}]
labels 7
  foo 7
    odd name.x 8 "NaN"
many 12 [{"k":1},{"k":2}]
`
	if diff := cmp.Diff(want, outline(n)); diff != "" {
		t.Error(diff)
	}
}

func TestParseJSON(t *testing.T) {
	t.Parallel()
	n, err := tree.ParseJSON([]byte("{ \"a\": 1,\n  \"ü\": { \"x\" : [ null, 1.5e3, \"y\" ] , \"z\":-0 },\n\n\"big\": 123456789012345678901, \"f\" : false\n}\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := `a 1:3 1
ü 2:3
  x 2:10 [null,1.5e3,"y"]
  z 2:39 0
big 4:1 123456789012345678901
f 4:31 false
`
	if diff := cmp.Diff(want, outline(n)); diff != "" {
		t.Error(diff)
	}
}

func TestSyntaxErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		parse func([]byte) (*tree.Node, error)
		in    string
		want  string
	}{
		"json cut":            {tree.ParseJSON, "{\"a\":\n [1", "2:4: the file ends too early"},
		"json empty":          {tree.ParseJSON, "", "1:1: the file ends too early"},
		"json comma":          {tree.ParseJSON, "{\n \"a\": 1,\n}", "3:1: invalid character '}'"},
		"json twice":          {tree.ParseJSON, "{\"a\":1,\n\"a\":2}", `2:1: the name "a" is here for the second time`},
		"json more":           {tree.ParseJSON, "{}\n {}", "2:2: something follows the end of the document"},
		"json no quotes":      {tree.ParseJSON, "{a: 1}", "1:2: invalid character 'a'"},
		"json toml":           {tree.ParseJSON, "a = 1", "1:1: invalid character 'a'"},
		"json not utf-8":      {tree.ParseJSON, "{\"a\":\n\"\xff\"}", "2:2: this is not UTF-8 text"},
		"json deep":           {tree.ParseJSON, strings.Repeat("[", 100_000), "1:202: the nesting is too deep"},
		"json wrong end":      {tree.ParseJSON, "[1}", "1:3: "},
		"toml value":          {tree.ParseTOML, "a = 1\nb = c\n", "2:5: "},
		"toml twice":          {tree.ParseTOML, "a = 1\na = 2\n", "2:"},
		"toml not utf-8":      {tree.ParseTOML, "a = \"\xff\"\n", "1:5: "},
		"toml json":           {tree.ParseTOML, "{}", "1:1: "},
		"toml deep":           {tree.ParseTOML, "a = " + strings.Repeat("[", 1000) + strings.Repeat("]", 1000), "1: the nesting is too deep"},
		"toml string no end ": {tree.ParseTOML, "a = \"x", "1:"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := c.parse([]byte(c.in))
			if _, ok := errors.AsType[*tree.SyntaxError](err); !ok || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s…", err, c.want)
			}
		})
	}
}

func FuzzParseJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,null,{"b":"c"}],"d":1.5}`, "{\n\"a\":\n", `[1}`, `"\ud800"`, "\xff", `{"a":1e999}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := tree.ParseJSON(data)
		if err != nil {
			if _, ok := errors.AsType[*tree.SyntaxError](err); !ok {
				t.Fatalf("an error without a place: %v", err)
			}
			return
		}
		var want, got any
		if err := json.Unmarshal(data, &want); err != nil {
			if strings.Contains(err.Error(), "cannot unmarshal number") { // a float beyond float64
				return
			}
			t.Fatalf("encoding/json refuses it: %v", err)
		}
		if err := json.Unmarshal(n.AppendJSON(nil), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func FuzzParseTOML(f *testing.F) {
	for _, s := range []string{"a.b = 1\n[c]\nd = [{e = 1}]\n", "[[x]]\n[x.y]\nz = 1979-05-27\n", "a = {}\n\"\" = inf\n", "\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := tree.ParseTOML(data)
		if err != nil {
			return
		}
		if b := n.AppendJSON(nil); !json.Valid(b) {
			t.Errorf("not JSON: %s", b)
		}
	})
}
