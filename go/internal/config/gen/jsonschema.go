package main

import (
	"bytes"
	"encoding/json"

	"hercules/internal/config/schema"
)

// object keeps JSON schema readable: encoding/json sorts the names of a map.
type object = map[string]any

// jsonSchema makes a schema for editors and other tools. Every setting may also be null, which means absent.
func jsonSchema(s *schema.Schema) ([]byte, error) {
	properties, required := object{}, []string{}
	for _, v := range s.Settings() {
		p := object{"description": oneParagraph(v.Description) + " " + defaultWords(v)}
		typ := jsonType(v.Type)
		if v.Required {
			required = append(required, v.Name)
			p["allOf"] = []object{typ}
		} else {
			p["anyOf"] = []object{typ, {"type": "null"}}
			if v.Default.Value != nil {
				p["default"] = v.Default.Value
			}
		}
		if v.Example != nil {
			p["examples"] = []json.RawMessage{v.Example}
		}
		properties[v.Name] = p
	}
	defs := object{}
	for name, t := range s.Types {
		d := jsonType(t)
		d["description"] = oneParagraph(t.Description)
		defs[name] = d
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(object{
		"$schema":              "https://json-schema.org/draft/2020-12/schema",
		"title":                "Configuration of " + s.Program,
		"type":                 "object",
		"properties":           properties,
		"required":             required,
		"additionalProperties": false,
		"$defs":                defs,
	})
	return b.Bytes(), err
}

func jsonType(t *schema.Type) object {
	switch t.Kind {
	case schema.String:
		return object{"type": "string"}
	case schema.Path:
		return object{"type": "string", "minLength": 1}
	case schema.Bool:
		return object{"type": "boolean"}
	case schema.Int:
		o := object{"type": "integer"}
		if t.Min != nil {
			o["minimum"] = *t.Min
		}
		if t.Max != nil {
			o["maximum"] = *t.Max
		}
		return o
	case schema.Enum:
		return object{"enum": t.Values}
	case schema.List:
		return object{"type": "array", "items": jsonType(t.Of)}
	case schema.Map:
		return object{"type": "object", "additionalProperties": jsonType(t.Of)}
	case schema.Record:
		o := fieldsObject(t.Fields)
		names := make([]string, len(t.Fields))
		for i, f := range t.Fields {
			names[i] = f.Name
		}
		o["required"] = names
		return o
	case schema.Tagged:
		o := fieldsObject(t.Tags)
		o["minProperties"], o["maxProperties"] = 1, 1
		return o
	case schema.Either:
		any := make([]object, len(t.Alternatives))
		for i, a := range t.Alternatives {
			any[i] = jsonType(a)
		}
		return object{"anyOf": any}
	case schema.Ref:
		return object{"$ref": "#/$defs/" + t.Name}
	default: // schema.JSON: any value
		return object{}
	}
}

func fieldsObject(fields []schema.Field) object {
	properties := object{}
	for _, f := range fields {
		p := jsonType(f.Type)
		p["description"] = oneParagraph(f.Description)
		properties[f.Name] = p
	}
	return object{"type": "object", "properties": properties, "additionalProperties": false}
}
