package schema_test

import (
	"strings"
	"testing"

	"hercules/internal/config/schema"
	"hercules/internal/config/tree"
)

const small = `{"program": "p", "types": {}, "sections": [{"title": "t", "description": "d", "settings": [
	{"name": "directory", "type": {"kind": "path"}, "description": "d", "required": true},
	{"name": "below", "type": {"kind": "path"}, "description": "d", "default": {"below": "directory", "path": "x/y"}},
	{"name": "deeper", "type": {"kind": "path"}, "description": "d", "default": {"below": "below", "path": "z"}},
	{"name": "address", "type": {"kind": "string"}, "description": "d", "default": {"environment": ["A", "B"], "value": "v"}},
	{"name": "workers", "type": {"kind": "int", "min": 1}, "description": "d", "default": {"derived": "cores"}},
	{"name": "tags", "type": {"kind": "map", "of": {"kind": "json"}}, "description": "d", "default": {"value": {}}}
]}]}`

func parse(t *testing.T, text string) *schema.Schema {
	t.Helper()
	s, err := schema.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestComplete(t *testing.T) {
	t.Parallel()
	s := parse(t, small)
	for in, want := range map[string]string{
		`{"directory":"/d"}`:               `{"address":"b","below":"/d/x/y","deeper":"/d/x/y/z","directory":"/d","tags":{}}`,
		`{"directory":"/d/","below":"/b"}`: `{"address":"b","below":"/b","deeper":"/b/z","directory":"/d","tags":{}}`,
		`{"directory":"/d","deeper":"/e/../f","address":"c","workers":3,"tags":{"n":null}}`: `{"address":"c","below":"/d/x/y","deeper":"/f","directory":"/d","tags":{"n":null},"workers":3}`,
	} {
		root, err := tree.ParseJSON([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if problems := s.Check(root); len(problems) > 0 {
			t.Errorf("%s: %v", in, problems)
		}
		got, err := s.Complete(root, func(k string) string { return map[string]string{"A": "", "B": "b"}[k] })
		if err != nil || string(got) != want {
			t.Errorf("%s\n got %s, %v\nwant %s", in, got, err, want)
		}
	}
}

func TestDefaultsInACircle(t *testing.T) {
	t.Parallel()
	s := parse(t, strings.Replace(small, `"required": true`, `"default": {"below": "deeper", "path": "."}`, 1))
	if _, err := s.Complete(&tree.Node{Kind: tree.Table}, func(string) string { return "" }); err == nil {
		t.Error("no error")
	}
}

func TestNearestName(t *testing.T) {
	t.Parallel()
	s := parse(t, small)
	for name, want := range map[string]string{
		"directori": "directory", "DIRECTORY": "directory", "dir": "", "adress": "address", "worker": "workers", "beneath": "",
		"": "", strings.Repeat("directory", 100): "",
	} {
		root := &tree.Node{Kind: tree.Table, Entries: []tree.Entry{{Name: name, Value: &tree.Node{Kind: tree.Bool}}}}
		message := ""
		for _, p := range s.Check(root) {
			if strings.HasPrefix(p.Message, "unknown setting") {
				message = p.Message
			}
		}
		expected := "unknown setting"
		if want != "" {
			expected += "; did you mean " + want + "?"
		}
		if message != expected {
			t.Errorf("%q: got %q, want %q", name, message, expected)
		}
	}
}
