package tree

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/BurntSushi/toml"
)

// ParseTOML reads one TOML document.
func ParseTOML(data []byte) (*Node, error) {
	var raw map[string]any
	if _, err := toml.Decode(string(data), &raw); err != nil {
		if e, ok := errors.AsType[toml.ParseError](err); ok {
			return nil, &SyntaxError{Pos{e.Position.Line, e.Position.Col}, e.Message}
		}
		return nil, &SyntaxError{Message: err.Error()}
	}
	b := &tomlBuilder{line: map[string]int{}}
	var values map[string]toml.Primitive
	if md, err := toml.Decode(string(data), &values); err == nil {
		b.locate(md, nil, values)
	}
	return b.node(nil, raw, 0, Pos{})
}

// tomlBuilder knows the lines of names. Their columns are not to be had.
type tomlBuilder struct{ line map[string]int }

// locate finds the line of each name and returns the first of them. The library keeps them to itself except in
// errors, so each value is decoded into something that always refuses.
func (b *tomlBuilder) locate(md toml.MetaData, parent toml.Key, values map[string]toml.Primitive) (first int) {
	for name, v := range values {
		key := append(slices.Clone(parent), name)
		line := 0
		if e, ok := errors.AsType[toml.ParseError](md.PrimitiveDecode(v, new(refuse))); ok {
			line = e.Position.Line
		}
		// A table that is only implied by others has no line of its own: it begins with the first of them.
		if sub := map[string]toml.Primitive(nil); len(key) <= maxDepth && md.PrimitiveDecode(v, &sub) == nil {
			if l := b.locate(md, key, sub); line == 0 || l > 0 && l < line {
				line = l
			}
		}
		b.line[key.String()] = line
		if first == 0 || line > 0 && line < first {
			first = line
		}
	}
	return first
}

type refuse struct{}

func (*refuse) UnmarshalTOML(any) error { return errors.New("refused") }

func (b *tomlBuilder) node(key toml.Key, value any, depth int, around Pos) (*Node, error) {
	n := &Node{Pos: Pos{Line: b.line[key.String()]}}
	if n.Pos.Line == 0 {
		n.Pos = around // something inside an inline list
	}
	if depth > maxDepth {
		return nil, &SyntaxError{n.Pos, "the nesting is too deep"}
	}
	switch v := value.(type) {
	case bool:
		n.Kind, n.Bool = Bool, v
	case int64:
		n.Kind, n.Int = Int, v
	case float64:
		n.Kind, n.Text = Float, strconv.FormatFloat(v, 'g', -1, 64)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			n.Kind = Other
		}
	case string:
		n.Kind, n.Text = String, v
	case time.Time:
		n.Kind, n.Text = Other, "date or time"
	case []any:
		return b.list(n, key, v, depth)
	case []map[string]any:
		items := make([]any, len(v))
		for i, m := range v {
			items[i] = m
		}
		return b.list(n, key, items, depth)
	case map[string]any:
		return b.table(n, key, v, depth)
	default:
		return nil, fmt.Errorf("%s: unexpected %T", key, value)
	}
	return n, nil
}

func (b *tomlBuilder) list(n *Node, key toml.Key, items []any, depth int) (*Node, error) {
	n.Kind = List
	for _, item := range items {
		// The names below the items of a list are not told apart, so these places are the first of their name.
		v, err := b.node(key, item, depth+1, n.Pos)
		if err != nil {
			return nil, err
		}
		n.Items = append(n.Items, v)
	}
	return n, nil
}

func (b *tomlBuilder) table(n *Node, key toml.Key, m map[string]any, depth int) (*Node, error) {
	n.Kind = Table
	for name, value := range m {
		sub := append(slices.Clone(key), name)
		v, err := b.node(sub, value, depth+1, n.Pos)
		if err != nil {
			return nil, err
		}
		n.Entries = append(n.Entries, Entry{name, v.Pos, v})
	}
	slices.SortFunc(n.Entries, func(x, y Entry) int {
		return cmp.Or(cmp.Compare(x.Pos.Line, y.Pos.Line), cmp.Compare(x.Name, y.Name))
	})
	return n, nil
}
