package schema

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"hercules/internal/config/tree"
)

// Complete gives the settings of a checked file as one JSON object, with defaults in place of what is absent. Paths
// are absolute. A setting whose default is derived stays absent.
func (s *Schema) Complete(root *tree.Node, getenv func(string) string) ([]byte, error) {
	r := &resolver{root: root, getenv: getenv, settings: map[string]Setting{}, done: map[string]json.RawMessage{}}
	all := s.Settings()
	for _, v := range all {
		r.settings[v.Name] = v
	}
	for _, v := range all {
		if _, err := r.value(v, len(all)); err != nil {
			return nil, err
		}
	}
	return json.Marshal(r.done)
}

type resolver struct {
	root     *tree.Node
	getenv   func(string) string
	settings map[string]Setting
	done     map[string]json.RawMessage
}

// value gives nil for a setting that stays absent. fuel bounds a circle of defaults.
func (r *resolver) value(v Setting, fuel int) (json.RawMessage, error) {
	if raw, ok := r.done[v.Name]; ok {
		return raw, nil
	}
	if fuel < 0 {
		return nil, fmt.Errorf("%s: its default depends on itself", v.Name)
	}
	raw, err := r.find(v, fuel)
	if err != nil || raw == nil {
		return nil, err
	}
	if v.Type.Kind == Path {
		var path string
		if err := json.Unmarshal(raw, &path); err != nil {
			return nil, fmt.Errorf("%s: %w", v.Name, err)
		}
		if path, err = filepath.Abs(path); err != nil {
			return nil, fmt.Errorf("%s: %w", v.Name, err)
		}
		if raw, err = json.Marshal(path); err != nil {
			return nil, err
		}
	}
	r.done[v.Name] = raw
	return raw, nil
}

func (r *resolver) find(v Setting, fuel int) (json.RawMessage, error) {
	if n := r.root.Get(v.Name); n != nil {
		return n.AppendJSON(nil), nil
	}
	d := v.Default
	if d == nil {
		return nil, fmt.Errorf("%s: missing", v.Name)
	}
	for _, name := range d.Environment {
		if value := r.getenv(name); value != "" {
			return json.Marshal(value)
		}
	}
	if d.Below == "" {
		return d.Value, nil
	}
	var dir string
	raw, err := r.value(r.settings[d.Below], fuel-1)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &dir); err != nil {
		return nil, fmt.Errorf("%s: %w", d.Below, err)
	}
	return json.Marshal(filepath.Join(dir, d.Path))
}
