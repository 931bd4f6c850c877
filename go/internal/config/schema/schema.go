// Package schema is what modules/schema/*.nix says about the settings of a program, and the checking of a
// configuration file against it. It knows no single setting.
package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Schema is the content of one of the files modules/schema/*.nix, where the meaning of each field is written.
type Schema struct {
	Program  string           `json:"program"`
	Types    map[string]*Type `json:"types"`
	Sections []Section        `json:"sections"`
}

// Section groups settings in the reference page.
type Section struct {
	Title       string    `json:"title"`
	Description string    `json:"description"`
	Settings    []Setting `json:"settings"`
}

// Setting is one name of the configuration file.
type Setting struct {
	Name        string          `json:"name"`
	Type        *Type           `json:"type"`
	Required    bool            `json:"required"`
	Default     *Default        `json:"default"`
	Description string          `json:"description"`
	Example     json.RawMessage `json:"example"`
	Since       string          `json:"since"`
	Access      string          `json:"access"`
	Secret      bool            `json:"secret"`
	Watch       bool            `json:"watch"`
}

// Default says what an absent setting is.
type Default struct {
	Value       json.RawMessage `json:"value"`
	Below       string          `json:"below"`
	Path        string          `json:"path"`
	Environment []string        `json:"environment"`
	Derived     string          `json:"derived"`
}

// Type is the type of a value.
type Type struct {
	Kind         Kind     `json:"kind"`
	Min          *int64   `json:"min"`
	Max          *int64   `json:"max"`
	Unit         string   `json:"unit"`
	Values       []string `json:"values"`
	Of           *Type    `json:"of"`
	Fields       []Field  `json:"fields"`
	Tags         []Field  `json:"tags"`
	Alternatives []*Type  `json:"alternatives"`
	Name         string   `json:"name"`
	Description  string   `json:"description"`
}

// Field is a field of a record, or a tag.
type Field struct {
	Name        string `json:"name"`
	Type        *Type  `json:"type"`
	Description string `json:"description"`
}

// Kind is the kind of a type.
type Kind string

// The kinds of types.
const (
	String Kind = "string"
	Path   Kind = "path"
	Bool   Kind = "bool"
	JSON   Kind = "json"
	Int    Kind = "int"
	Enum   Kind = "enum"
	List   Kind = "list"
	Map    Kind = "map"
	Record Kind = "record"
	Tagged Kind = "tagged"
	Either Kind = "either"
	Ref    Kind = "ref"
)

// Parse reads a schema as `nix-instantiate --eval --strict --json` prints it, and refuses one that is not sound.
func Parse(data []byte) (*Schema, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	s := new(Schema)
	if err := dec.Decode(s); err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	return s, s.sound()
}

// Settings gives all settings in the order of the file.
func (s *Schema) Settings() []Setting {
	var all []Setting
	for _, sec := range s.Sections {
		all = append(all, sec.Settings...)
	}
	return all
}

// Resolve follows a reference.
func (s *Schema) Resolve(t *Type) *Type {
	for t.Kind == Ref {
		t = s.Types[t.Name]
	}
	return t
}

func (s *Schema) sound() error {
	var errs []error
	complain := func(where, format string, args ...any) {
		errs = append(errs, fmt.Errorf("schema: %s: %s", where, fmt.Sprintf(format, args...)))
	}
	for name, t := range s.Types {
		if t.Kind == Ref {
			complain(name, "a named type cannot be a reference")
		}
		s.soundType(name, t, complain)
	}
	names := map[string]*Type{}
	for _, v := range s.Settings() {
		if names[v.Name] != nil {
			complain(v.Name, "is here twice")
		}
		names[v.Name] = v.Type
		if v.Type == nil {
			complain(v.Name, "has no type")
			continue
		}
		s.soundType(v.Name, v.Type, complain)
		if v.Description == "" {
			complain(v.Name, "has no description")
		}
		if v.Required == (v.Default != nil) {
			complain(v.Name, "must be either required or have a default")
		}
	}
	for _, v := range s.Settings() {
		d := v.Default
		switch {
		case d == nil || v.Type == nil:
		case d.Below != "":
			if b := names[d.Below]; b == nil || b.Kind != Path || v.Type.Kind != Path {
				complain(v.Name, "is below %q, and not both are paths", d.Below)
			}
		case d.Derived != "":
			// An absent number is 0 in the program.
			if v.Type.Kind == Int && (v.Type.Min == nil || *v.Type.Min < 1) {
				complain(v.Name, "a number with a derived default has to be at least 1")
			}
		case d.Value == nil:
			complain(v.Name, "has an empty default")
		}
	}
	return errors.Join(errs...)
}

func (s *Schema) soundType(where string, t *Type, complain func(where, format string, args ...any)) {
	kinds := []Kind{String, Path, Bool, JSON, Int, Enum, List, Map, Record, Tagged, Either, Ref}
	if !slices.Contains(kinds, t.Kind) {
		complain(where, "unknown kind %q", t.Kind)
	}
	if t.Kind == Ref && s.Types[t.Name] == nil {
		complain(where, "refers to %q, which is not there", t.Name)
	}
	if (t.Kind == List || t.Kind == Map) != (t.Of != nil) || (t.Kind == Enum) != (len(t.Values) > 0) ||
		(t.Kind == Either) != (len(t.Alternatives) > 0) || (t.Kind == Record) != (len(t.Fields) > 0) || (t.Kind == Tagged) != (len(t.Tags) > 0) {
		complain(where, "the kind %s does not fit its parts", t.Kind)
	}
	if t.Of != nil {
		s.soundType(where, t.Of, complain)
	}
	for _, a := range t.Alternatives {
		s.soundType(where, a, complain)
	}
	for _, f := range slices.Concat(t.Fields, t.Tags) {
		if f.Name == "" || f.Description == "" || f.Type == nil {
			complain(where, "a field without name, type or description")
			continue
		}
		s.soundType(where+"."+f.Name, f.Type, complain)
	}
}

// Describe says in words what is expected.
func (s *Schema) Describe(t *Type) string {
	switch t.Kind {
	case String:
		return "a text"
	case Path:
		return "a path"
	case Bool:
		return "true or false"
	case JSON:
		return "any value"
	case Int:
		return describeInt(t)
	case Enum:
		quoted := make([]string, len(t.Values))
		for i, v := range t.Values {
			quoted[i] = `"` + v + `"`
		}
		if len(quoted) == 1 {
			return quoted[0]
		}
		return "one of " + strings.Join(quoted, ", ")
	case List:
		return "a list of " + s.plural(t.Of)
	case Map:
		return "a table of " + s.plural(t.Of)
	case Record:
		return "a table with the fields " + fieldNames(t.Fields)
	case Tagged:
		return "a table with exactly one of the fields " + fieldNames(t.Tags)
	case Either:
		words := make([]string, len(t.Alternatives))
		for i, a := range t.Alternatives {
			words[i] = s.Describe(a)
		}
		return strings.Join(words, ", or ")
	case Ref:
		return "a " + t.Name
	}
	return string(t.Kind)
}

// plural names the items of a list or a table.
func (s *Schema) plural(t *Type) string {
	switch t.Kind {
	case String:
		return "texts"
	case Path:
		return "paths"
	case JSON:
		return "any values"
	case Ref:
		return t.Name + "s"
	}
	return "items that are each " + s.Describe(t)
}

func describeInt(t *Type) string {
	what := "a whole number"
	if t.Unit != "" {
		what += " of " + t.Unit
	}
	switch {
	case t.Min != nil && t.Max != nil:
		return fmt.Sprintf("%s from %d to %d", what, *t.Min, *t.Max)
	case t.Min != nil:
		return fmt.Sprintf("%s, at least %d", what, *t.Min)
	case t.Max != nil:
		return fmt.Sprintf("%s, at most %d", what, *t.Max)
	}
	return what
}

func fieldNames(fields []Field) string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.Name
	}
	return strings.Join(names, ", ")
}
