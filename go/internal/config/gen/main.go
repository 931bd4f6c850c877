// Command gen makes what depends on the schema of settings: the Go type of the configuration, the reference page and
// the JSON schema. It reads modules/schema with nix-instantiate and is run by go generate. It decides nothing about
// settings.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"hercules/internal/atomicfile"
	"hercules/internal/config/schema"
)

// program is one schema and what is made from it. Paths begin at the root of the repository.
type program struct{ schema, data, code, page, jsonSchema string }

var programs = []program{{
	schema:     "modules/schema/agent.nix",
	data:       "go/internal/config/agent_gen.json",
	code:       "go/internal/config/config_gen.go",
	page:       "docs/agent-config.md",
	jsonSchema: "docs/agent.schema.json",
}}

func main() {
	// go generate runs in the directory of the package, go/internal/config.
	root := filepath.Join("..", "..", "..")
	if err := run(context.Background(), root); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string) error {
	for _, p := range programs {
		data, err := evaluate(ctx, filepath.Join(root, p.schema))
		if err != nil {
			return err
		}
		files, err := p.generate(data)
		if err != nil {
			return fmt.Errorf("%s: %w", p.schema, err)
		}
		for path, content := range files {
			if err := atomicfile.Write(filepath.Join(root, path), content, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// evaluate gives the schema as indented JSON, in an order that is always the same.
func evaluate(ctx context.Context, path string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "nix-instantiate", "--eval", "--strict", "--json", path)
	// No store and no daemon are needed for plain data.
	cmd.Env = append(slices.Clone(os.Environ()), "NIX_REMOTE=dummy://")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("evaluate %s: %w", path, err)
	}
	return indent(out)
}

// generate makes all files of a program from its evaluated schema.
func (p program) generate(data []byte) (map[string][]byte, error) {
	s, err := schema.Parse(data)
	if err != nil {
		return nil, err
	}
	code, err := goCode(s, p.schema)
	if err != nil {
		return nil, err
	}
	js, err := jsonSchema(s)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{p.data: data, p.code: code, p.page: page(s, p.schema), p.jsonSchema: js}, nil
}
