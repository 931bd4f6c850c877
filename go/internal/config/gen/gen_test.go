package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/config/schema"
)

var root = filepath.Join("..", "..", "..", "..")

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func needRepository(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(root, "modules")); err != nil {
		t.Skip("SKIP: the rest of the repository is not here: ", err)
	}
}

// TestGeneratedFilesAreUpToDate needs no Nix: the evaluated schema is committed too.
func TestGeneratedFilesAreUpToDate(t *testing.T) {
	t.Parallel()
	needRepository(t)
	for _, p := range programs {
		files, err := p.generate(read(t, p.data))
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range files {
			if diff := cmp.Diff(string(want), string(read(t, path))); diff != "" {
				t.Errorf("%s is stale, run `make generate`:\n%s", path, diff)
			}
		}
	}
}

func TestEvaluatedSchemaIsUpToDate(t *testing.T) {
	t.Parallel()
	needRepository(t)
	if _, err := exec.LookPath("nix-instantiate"); err != nil {
		t.Skip("SKIP: no Nix: ", err)
	}
	for _, p := range programs {
		want, err := evaluate(t.Context(), filepath.Join(root, p.schema))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want, read(t, p.data)) {
			t.Errorf("%s is stale, run `make generate`", p.data)
		}
	}
}

// TestExamplesAndDefaultsFitTheirTypes: what the reference page shows has to be accepted.
func TestExamplesAndDefaultsFitTheirTypes(t *testing.T) {
	t.Parallel()
	needRepository(t)
	for _, p := range programs {
		s, err := schema.Parse(read(t, p.data))
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range s.Settings() {
			values := map[string]json.RawMessage{"example": v.Example}
			if v.Default != nil {
				values["default"] = v.Default.Value
			}
			for what, value := range values {
				if value == nil {
					continue
				}
				if problems := s.CheckValue(v.Type, value); len(problems) > 0 {
					t.Errorf("%s: its %s %s does not fit: %v", v.Name, what, value, problems)
				}
			}
		}
	}
}

func TestUnsoundSchemasAreRefused(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]string{
		`{"name":"a","type":{"kind":"text"},"description":"d","required":true}`:                            `unknown kind "text"`,
		`{"name":"a","type":{"kind":"list"},"description":"d","required":true}`:                            "does not fit its parts",
		`{"name":"a","type":{"kind":"ref","name":"x"},"description":"d","required":true}`:                  `refers to "x"`,
		`{"name":"a","type":{"kind":"bool"},"required":true}`:                                              "has no description",
		`{"name":"a","type":{"kind":"bool"},"description":"d"}`:                                            "must be either required or have a default",
		`{"name":"a","description":"d","required":true}`:                                                   "has no type",
		`{"name":"a","type":{"kind":"path"},"description":"d","default":{"below":"b","path":"c"}}`:         `is below "b"`,
		`{"name":"a","type":{"kind":"int"},"description":"d","default":{"derived":"x"}}`:                   "at least 1",
		`{"name":"a","type":{"kind":"bool"},"description":"d","default":{}}`:                               "empty default",
		`{"name":"a","type":{"kind":"bool"},"description":"d","required":true,"defualt":1}`:                "unknown field",
		`{"name":"a","type":{"kind":"record","fields":[{"name":"b"}]},"description":"d","required":true}`:  "a field without",
		`{"name":"a","type":{"kind":"map","of":{"kind":"enum"}},"description":"d","default":{"value":{}}}`: "does not fit its parts",
		`{"name":"a","type":{"kind":"bool"},"description":"d","required":true},` +
			`{"name":"a","type":{"kind":"bool"},"description":"d","required":true}`: "is here twice",
	} {
		_, err := schema.Parse([]byte(`{"program":"p","sections":[{"title":"t","settings":[` + setting + `]}]}`))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v, want %s", setting, err, want)
		}
	}
}
