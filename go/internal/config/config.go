// Package config loads the agent's configuration file. What settings there are, and their types, defaults and
// descriptions, is written in modules/schema/agent.nix alone; config_gen.go and agent_gen.json are made from it.
// The package reads no secrets and does not look at the machine, except for its number of CPUs and its memory.
package config

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"sync"

	"hercules/internal/config/schema"
	"hercules/internal/config/tree"
	"hercules/internal/formats"
)

//go:generate go run ./gen

//go:embed agent_gen.json
var agentSchema []byte

// agent parses the schema once; that it is sound was seen when it was generated.
var agent = sync.OnceValues(func() (*schema.Schema, error) { return schema.Parse(agentSchema) })

// maxSize bounds what is read of a configuration file.
const maxSize = 16 << 20

// Count is a number, or 0 for "auto" in the file. Load puts the number of this machine in its place.
type Count int

// UnmarshalJSON takes a number or a word.
func (c *Count) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*c = 0
		return nil
	}
	return json.Unmarshal(b, (*int)(c))
}

// Condition is a condition that is decoded strictly.
type Condition formats.Condition

// UnmarshalJSON implements json.Unmarshaler.
func (c *Condition) UnmarshalJSON(b []byte) error {
	return formats.Unmarshal(b, (*formats.Condition)(c))
}

// Load reads a configuration file, JSON where its name ends in .json and TOML otherwise, and fills in all defaults,
// also those of this machine and environment. An error that is due to the content is a *schema.Error with all of its problems.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("configuration %s: larger than %d MiB", path, maxSize>>20)
	}
	return Parse(path, data, os.Getenv)
}

// Parse is Load of a content. The name decides the format and is shown in errors.
func Parse(name string, data []byte, getenv func(string) string) (*Config, error) {
	c, err := parse(name, data, getenv)
	if err != nil {
		return nil, err
	}
	c.fitTo(thisMachine())
	return c, nil
}

// parse leaves what depends on the machine at 0.
func parse(name string, data []byte, getenv func(string) string) (*Config, error) {
	s, err := agent()
	if err != nil {
		return nil, err
	}
	read := tree.ParseTOML
	if strings.HasSuffix(name, ".json") {
		read = tree.ParseJSON
	}
	root, err := read(data)
	if err != nil {
		p := schema.Problem{Message: err.Error()}
		if e, ok := errors.AsType[*tree.SyntaxError](err); ok {
			p.Pos, p.Message = e.Pos, e.Message
		}
		return nil, schema.NewError(name, p)
	}
	problems := s.Check(root)
	problems = append(problems, checkURL(root, getenv)...)
	if len(problems) > 0 {
		return nil, schema.NewError(name, problems...)
	}
	full, err := s.Complete(root, getenv)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	c := new(Config)
	if err := json.Unmarshal(full, c); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	c.APIBaseURL = strings.TrimRight(c.APIBaseURL, "/")
	return c, nil
}

// checkURL is the one check that the types of the schema do not express.
func checkURL(root *tree.Node, getenv func(string) string) []schema.Problem {
	const key = "apiBaseUrl"
	p := schema.Problem{Key: key}
	var text string
	if n := root.Get(key); n != nil {
		if n.Kind != tree.String {
			return nil // complained about already
		}
		p.Pos, text = n.Pos, n.Text
	} else {
		for _, variable := range []string{"HERCULES_CI_API_BASE_URL", "HERCULES_API_BASE_URL"} {
			if text = getenv(variable); text != "" {
				p.Key = "$" + variable
				break
			}
		}
		if text == "" {
			return nil
		}
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		p.Message = "expected a URL: " + errors.Unwrap(err).Error()
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		p.Message = fmt.Sprintf("expected a URL that begins with https:// or http:// and names a host, got %q", u.Redacted())
	case u.RawQuery != "" || u.Fragment != "":
		p.Message = "expected a URL without ? and #"
	default:
		return nil
	}
	return []schema.Problem{p}
}
