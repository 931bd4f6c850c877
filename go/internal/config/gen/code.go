package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/format"
	"slices"
	"strings"

	"hercules/internal/config/schema"
)

// goTypes are the named types of the schema that have a Go type written by hand.
var goTypes = map[string]string{"condition": "Condition"}

// goCode makes the Go type of a configuration.
func goCode(s *schema.Schema, source string) ([]byte, error) {
	var body bytes.Buffer
	fmt.Fprintf(&body, "// Config is the configuration of %s. Load gives one with all defaults filled in.\ntype Config struct {", s.Program)
	var methods bytes.Buffer
	for _, sec := range s.Sections {
		fmt.Fprintf(&body, "\n// %s: %s\n\n", sec.Title, sec.Description)
		for _, v := range sec.Settings {
			typ, err := goType(s, v.Type)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", v.Name, err)
			}
			comment(&body, "\t", oneParagraph(v.Description)+" "+defaultWords(v))
			fmt.Fprintf(&body, "\t%s %s `json:%q`\n", goName(v.Name), typ, v.Name)
			unitMethod(&methods, v)
		}
	}
	body.WriteString("}\n\n")
	for _, name := range sortedKeys(s.Types) {
		if goTypes[name] != "" {
			continue
		}
		t := s.Types[name]
		if t.Kind != schema.Record {
			return nil, fmt.Errorf("%s: a named type that is not a record needs a Go type", name)
		}
		comment(&body, "", goName(name)+" is a value of the type "+name+". "+oneParagraph(t.Description))
		fmt.Fprintf(&body, "type %s struct {\n", goName(name))
		for _, f := range t.Fields {
			typ, err := goType(s, f.Type)
			if err != nil {
				return nil, fmt.Errorf("%s.%s: %w", name, f.Name, err)
			}
			comment(&body, "\t", oneParagraph(f.Description))
			fmt.Fprintf(&body, "\t%s %s `json:%q`\n", goName(f.Name), typ, f.Name)
		}
		body.WriteString("}\n\n")
	}
	body.Write(methods.Bytes())

	var out bytes.Buffer
	fmt.Fprintf(&out, "// Code generated from %s by go generate; DO NOT EDIT.\n\npackage config\n\nimport (\n", source)
	for _, imp := range [][2]string{{"json.", "encoding/json"}, {"time.", "time"}} {
		if bytes.Contains(body.Bytes(), []byte(imp[0])) {
			fmt.Fprintf(&out, "\t%q\n", imp[1])
		}
	}
	out.WriteString(")\n\n")
	out.Write(body.Bytes())
	return format.Source(out.Bytes())
}

func goType(s *schema.Schema, t *schema.Type) (string, error) {
	switch t.Kind {
	case schema.String, schema.Path, schema.Enum:
		return "string", nil
	case schema.Bool:
		return "bool", nil
	case schema.Int:
		return "int", nil
	case schema.JSON:
		return "json.RawMessage", nil
	case schema.List, schema.Map:
		of, err := goType(s, t.Of)
		if t.Kind == schema.Map {
			return "map[string]" + of, err
		}
		return "[]" + of, err
	case schema.Ref:
		if name := goTypes[t.Name]; name != "" {
			return name, nil
		}
		return goName(t.Name), nil
	case schema.Either:
		a := t.Alternatives
		if len(a) == 2 && a[0].Kind == schema.Int && a[0].Min != nil && *a[0].Min > 0 && a[1].Kind == schema.Enum && len(a[1].Values) == 1 {
			return "Count", nil
		}
	}
	return "", fmt.Errorf("no Go type for the kind %s", t.Kind)
}

// unitMethod makes a method for a number with a unit, so that nobody multiplies by hand.
func unitMethod(b *bytes.Buffer, v schema.Setting) {
	field := goName(v.Name)
	switch v.Type.Unit {
	case "seconds":
		name := strings.TrimSuffix(field, "Seconds")
		fmt.Fprintf(b, "// %s is the setting %s as a duration%s.\nfunc (c *Config) %s() time.Duration { return time.Duration(c.%s) * time.Second }\n\n",
			name, v.Name, zeroWords(v), name, field)
	case "MiB":
		name := strings.TrimSuffix(field, "MiB")
		fmt.Fprintf(b, "// %s is the setting %s in bytes.\nfunc (c *Config) %s() int64 { return int64(c.%s) << 20 }\n\n", name, v.Name, name, field)
	}
}

func zeroWords(v schema.Setting) string {
	if v.Default != nil && v.Default.Derived != "" {
		return "; 0 is " + v.Default.Derived
	}
	return ""
}

// goName is the name with a capital, and with the initialisms that Go writes large.
func goName(name string) string {
	switch {
	case strings.HasPrefix(name, "api"):
		name = "API" + name[len("api"):]
	default:
		name = strings.ToUpper(name[:1]) + name[1:]
	}
	for _, w := range [][2]string{{"Url", "URL"}, {"Json", "JSON"}} {
		name = strings.ReplaceAll(name, w[0], w[1])
	}
	return name
}

func comment(b *bytes.Buffer, indent, text string) {
	line := indent + "//"
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > 118 {
			b.WriteString(line + "\n")
			line = indent + "//"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}

func oneParagraph(s string) string { return strings.Join(strings.Fields(s), " ") }

func defaultWords(v schema.Setting) string {
	switch d := v.Default; {
	case v.Required:
		return "Required."
	case d.Derived != "":
		return "Default: " + d.Derived + "."
	case d.Below != "":
		return "Default: " + d.Path + " below " + d.Below + "."
	case len(d.Environment) > 0:
		return "Default: $" + strings.Join(d.Environment, ", else $") + ", else " + string(d.Value) + "."
	default:
		return "Default: " + string(d.Value) + "."
	}
}

func indent(data []byte) ([]byte, error) {
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(data), "", "  "); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
