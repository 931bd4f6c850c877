package schema

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"hercules/internal/config/tree"
)

// Check compares a file with the schema and returns all that is wrong. A null is taken out of the tree: it means
// absent, except inside values of any shape.
func (s *Schema) Check(root *tree.Node) []Problem {
	c := &checker{schema: s}
	if root.Kind != tree.Table {
		c.add(root.Pos, "", "expected a table of settings, got "+shown(root))
		return c.problems
	}
	settings := s.Settings()
	fields := make([]Field, len(settings))
	for i, v := range settings {
		fields[i] = Field{Name: v.Name, Type: v.Type}
	}
	c.fields(root, "", fields, "setting")
	for _, v := range settings {
		if v.Required && root.Get(v.Name) == nil {
			c.add(tree.Pos{}, v.Name, "missing, expected "+s.Describe(v.Type))
		}
	}
	return c.problems
}

// CheckValue compares one value, as JSON, with a type.
func (s *Schema) CheckValue(t *Type, data []byte) []Problem {
	n, err := tree.ParseJSON(data)
	if err != nil {
		return []Problem{{Message: err.Error()}}
	}
	c := &checker{schema: s}
	c.value(n, "", t)
	return c.problems
}

type checker struct {
	schema   *Schema
	problems []Problem
}

func (c *checker) add(pos tree.Pos, key, message string) {
	c.problems = append(c.problems, Problem{Pos: pos, Key: key, Message: message})
}

func (c *checker) expected(n *tree.Node, key string, t *Type) {
	message := "expected " + c.schema.Describe(t) + ", got " + shown(n)
	if n.Kind == tree.String {
		if near := nearest(n.Text, enumValues(t)); near != "" {
			message += fmt.Sprintf("; did you mean %q?", near)
		}
	}
	c.add(n.Pos, key, message)
}

func enumValues(t *Type) []string {
	values := slices.Clone(t.Values)
	for _, a := range t.Alternatives {
		values = append(values, enumValues(a)...)
	}
	return values
}

func (c *checker) value(n *tree.Node, key string, t *Type) {
	switch t.Kind {
	case Ref:
		c.value(n, key, c.schema.Resolve(t))
	case JSON:
		c.anything(n, key)
	case Either:
		c.either(n, key, t)
	case List:
		if n.Kind != tree.List {
			c.expected(n, key, t)
			return
		}
		for i, item := range n.Items {
			c.value(item, key+"["+strconv.Itoa(i)+"]", t.Of)
		}
	case Map:
		if n.Kind != tree.Table {
			c.expected(n, key, t)
			return
		}
		if t.Of.Kind != JSON {
			dropNulls(n)
		}
		for _, e := range n.Entries {
			c.value(e.Value, join(key, e.Name), t.Of)
		}
	case Record:
		c.record(n, key, t)
	case Tagged:
		c.tagged(n, key, t)
	default:
		if !fits(n, t) {
			c.expected(n, key, t)
		}
	}
}

// fits decides about the types without parts.
func fits(n *tree.Node, t *Type) bool {
	switch t.Kind {
	case String:
		return n.Kind == tree.String
	case Path:
		return n.Kind == tree.String && n.Text != "" && !strings.ContainsRune(n.Text, 0)
	case Bool:
		return n.Kind == tree.Bool
	case Enum:
		return n.Kind == tree.String && slices.Contains(t.Values, n.Text)
	case Int:
		return n.Kind == tree.Int && n.Text == "" && (t.Min == nil || n.Int >= *t.Min) && (t.Max == nil || n.Int <= *t.Max)
	}
	return false
}

func (c *checker) record(n *tree.Node, key string, t *Type) {
	if n.Kind != tree.Table {
		c.expected(n, key, t)
		return
	}
	c.fields(n, key, t.Fields, "field")
	for _, f := range t.Fields {
		if n.Get(f.Name) == nil {
			c.add(n.Pos, join(key, f.Name), "missing, expected "+c.schema.Describe(f.Type))
		}
	}
}

func (c *checker) tagged(n *tree.Node, key string, t *Type) {
	if n.Kind != tree.Table {
		c.expected(n, key, t)
		return
	}
	before := len(c.problems)
	c.fields(n, key, t.Tags, "field")
	if len(n.Entries) != 1 && len(c.problems) == before {
		c.add(n.Pos, key, fmt.Sprintf("expected %s, got %d fields", c.schema.Describe(t), len(n.Entries)))
	}
}

// fields checks what is in a table; what is missing is for the caller.
func (c *checker) fields(n *tree.Node, key string, fields []Field, what string) {
	dropNulls(n)
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.Name
	}
	for _, e := range n.Entries {
		if i := slices.Index(names, e.Name); i >= 0 {
			c.value(e.Value, join(key, e.Name), fields[i].Type)
			continue
		}
		message := "unknown " + what
		if near := nearest(e.Name, names); near != "" {
			message += "; did you mean " + near + "?"
		} else if what == "field" {
			message += ", expected one of " + strings.Join(names, ", ")
		}
		c.add(e.Pos, join(key, e.Name), message)
	}
}

// either takes the first alternative that fits. When none does, the message is about the one that has the shape of
// the value, because it can say more; or else about all of them.
func (c *checker) either(n *tree.Node, key string, t *Type) {
	for _, a := range t.Alternatives {
		try := &checker{schema: c.schema}
		try.value(n, key, a)
		if len(try.problems) == 0 {
			return
		}
		r := c.schema.Resolve(a)
		table := r.Kind == Record || r.Kind == Tagged || r.Kind == Map
		if n.Kind == tree.Table && table || n.Kind == tree.List && r.Kind == List {
			c.problems = append(c.problems, try.problems...)
			return
		}
	}
	c.expected(n, key, t)
}

// anything takes what JSON can express.
func (c *checker) anything(n *tree.Node, key string) {
	if n.Kind == tree.Other {
		c.add(n.Pos, key, "expected a value that JSON has too, got a "+n.Text+"; put it in quotes")
	}
	for i, item := range n.Items {
		c.anything(item, key+"["+strconv.Itoa(i)+"]")
	}
	for _, e := range n.Entries {
		c.anything(e.Value, join(key, e.Name))
	}
}

func dropNulls(n *tree.Node) {
	n.Entries = slices.DeleteFunc(n.Entries, func(e tree.Entry) bool { return e.Value.Kind == tree.Null })
}

// join writes the name of a name in a table; odd names are quoted.
func join(key, name string) string {
	plain := name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
	if !plain {
		name = strconv.Quote(cut(name))
	}
	if key == "" {
		return name
	}
	return key + "." + name
}

func shown(n *tree.Node) string {
	switch n.Kind {
	case tree.Null:
		return "null"
	case tree.Bool:
		return strconv.FormatBool(n.Bool)
	case tree.Int:
		return "the number " + cut(string(n.AppendJSON(nil)))
	case tree.Float:
		return "the number " + cut(n.Text)
	case tree.String:
		return "the text " + strconv.Quote(cut(n.Text))
	case tree.List:
		return "a list"
	case tree.Table:
		return "a table"
	}
	return "a " + n.Text
}

// cut keeps messages readable whatever is in the file.
func cut(s string) string {
	const limit = 60
	if r := []rune(s); len(r) > limit {
		return string(r[:limit]) + "…"
	}
	return s
}
