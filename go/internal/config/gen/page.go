package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"hercules/internal/config/schema"
)

// page makes the reference page.
func page(s *schema.Schema, source string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "<!-- Generated from %s by `make generate`; do not edit. -->\n\n# Settings of %s\n\n", source, s.Program)
	b.WriteString(`The file is named by ` + "`--config`" + `. It is read as JSON when its name ends in ` + "`.json`" + ` and as TOML otherwise;
both have the same settings. Only the required ones have to be there; ` + "`null`" + ` (JSON) means absent. A wrong type, an
unknown name or a value out of range is an error that names the place in the file; names are case-sensitive.
`)
	b.WriteString("\n| setting | type | default |\n| --- | --- | --- |\n")
	for _, v := range s.Settings() {
		fmt.Fprintf(&b, "| [`%s`](#%s) | %s | %s |\n", v.Name, strings.ToLower(v.Name), cell(s.Describe(v.Type)), cell(strings.TrimSuffix(strings.TrimPrefix(defaultCode(v), "Default: "), ".")))
	}
	for _, sec := range s.Sections {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", sec.Title, sec.Description)
		for _, v := range sec.Settings {
			fmt.Fprintf(&b, "\n### `%s`\n\n%s\n\n", v.Name, strings.TrimSpace(v.Description))
			fmt.Fprintf(&b, "- Type: %s\n- %s\n", s.Describe(v.Type), defaultCode(v))
			if v.Example != nil {
				fmt.Fprintf(&b, "- Example: `%s`\n", compact(v.Example))
			}
			for _, line := range notes(v) {
				fmt.Fprintf(&b, "- %s\n", line)
			}
		}
	}
	for _, name := range sortedKeys(s.Types) {
		t := s.Types[name]
		fmt.Fprintf(&b, "\n## The type %s\n\n%s\n", name, strings.TrimSpace(t.Description))
		var fields []schema.Field
		fields = append(fields, t.Fields...)
		for _, a := range t.Alternatives {
			fields = append(fields, a.Tags...)
		}
		b.WriteString("\n" + capital(s.Describe(t)) + ".\n\n| field | type | |\n| --- | --- | --- |\n")
		for _, f := range fields {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Name, cell(s.Describe(f.Type)), cell(oneParagraph(f.Description)))
		}
	}
	return b.Bytes()
}

func notes(v schema.Setting) []string {
	var out []string
	switch v.Access {
	case "read":
		out = append(out, "The agent only reads here.")
	case "write":
		out = append(out, "The agent writes here.")
	}
	if v.Secret {
		out = append(out, "Holds secrets: keep it out of the Nix store.")
	}
	if v.Watch {
		out = append(out, "A change counts from the next start; the service modules restart the agent.")
	}
	if v.Since != "" {
		out = append(out, "Since "+v.Since+".")
	}
	return out
}

// defaultCode is defaultWords with names and values marked as such.
func defaultCode(v schema.Setting) string {
	d := v.Default
	switch {
	case v.Required:
		return "Required."
	case d.Derived != "":
		return "Default: " + d.Derived + "."
	case d.Below != "":
		return fmt.Sprintf("Default: `%s` below `%s`.", d.Path, d.Below)
	case len(d.Environment) > 0:
		return "Default: `$" + strings.Join(d.Environment, "`, else `$") + "`, else `" + compact(d.Value) + "`."
	default:
		return "Default: `" + compact(d.Value) + "`."
	}
}

func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return string(raw)
	}
	return b.String()
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
