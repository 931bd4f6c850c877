package derivation

import (
	"errors"
	"fmt"
	"strings"
)

// maxNesting bounds how deep dynamic inputs may go.
const maxNesting = 32

// errEnd is where the text ends too early.
var errEnd = errors.New("the text ends in the middle")

// Parse reads a derivation in the ATerm form: Derive(…), or DrvWithVersion("xp-dyn-drv",…) with dynamic inputs.
func Parse(b []byte) (*Derivation, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("derivation of %d bytes, more than %d", len(b), MaxSize)
	}
	d, err := parse(string(b))
	if err != nil {
		return nil, fmt.Errorf("derivation: %w", err)
	}
	return d, nil
}

// parse keeps parts of the text in the derivation.
func parse(text string) (*Derivation, error) {
	p := parser{text: text}
	d := p.derivation()
	if p.err == nil && p.pos != len(p.text) {
		p.fail("%d bytes after the end", len(p.text)-p.pos)
	}
	if p.err != nil {
		return nil, p.err
	}
	return d, nil
}

// parser goes through the text once. After an error all of its methods do nothing.
type parser struct {
	text    string
	pos     int
	dynamic bool
	err     error
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("byte %d: %w", p.pos, fmt.Errorf(format, args...))
		p.pos = len(p.text)
	}
}

func (p *parser) derivation() *Derivation {
	d := &Derivation{}
	switch {
	case strings.HasPrefix(p.text, "Derive("):
		p.pos = len("Derive(")
	case strings.HasPrefix(p.text, "DrvWithVersion("):
		p.pos = len("DrvWithVersion(")
		if version := p.str(); p.err == nil && version != "xp-dyn-drv" {
			p.fail("unknown version %q", version)
		}
		p.expect(',')
		p.dynamic = true
	default:
		p.fail("it does not begin with Derive(")
	}
	d.Outputs = p.outputs()
	p.expect(',')
	p.inputDrvs(d)
	p.expect(',')
	d.InputSrcs = p.strs()
	p.expect(',')
	d.Platform = p.str()
	p.expect(',')
	d.Builder = p.str()
	p.expect(',')
	d.Args = p.strs()
	p.expect(',')
	d.Env = p.env()
	p.expect(')')
	return d
}

func (p *parser) expect(c byte) {
	if p.pos < len(p.text) && p.text[p.pos] == c {
		p.pos++
		return
	}
	if p.pos >= len(p.text) {
		p.fail("%w, expected %q", errEnd, c)
		return
	}
	p.fail("expected %q, found %q", c, p.text[p.pos])
}

// more tells whether the list that has been opened has another element, and takes the comma before it.
func (p *parser) more(first *bool) bool {
	if p.pos >= len(p.text) {
		p.fail("%w, expected ']'", errEnd)
		return false
	}
	if p.text[p.pos] == ']' {
		p.pos++
		return false
	}
	if !*first {
		p.expect(',')
	}
	*first = false
	return p.err == nil
}

// str reads a quoted text. Without escapes it is a part of the text.
func (p *parser) str() string {
	p.expect('"')
	if p.err != nil {
		return ""
	}
	rest := p.text[p.pos:]
	end := strings.IndexByte(rest, '"')
	if end < 0 {
		p.fail("%w, in a text", errEnd)
		return ""
	}
	if strings.IndexByte(rest[:end], '\\') < 0 {
		p.pos += end + 1
		return rest[:end]
	}
	return p.escaped()
}

func (p *parser) escaped() string {
	var b strings.Builder
	rest := p.text[p.pos:]
	for i := 0; ; {
		run := i
		for i < len(rest) && rest[i] != '"' && rest[i] != '\\' {
			i++
		}
		b.WriteString(rest[run:i])
		if i >= len(rest) || rest[i] == '\\' && i+1 >= len(rest) {
			p.fail("%w, in a text", errEnd)
			return ""
		}
		if rest[i] == '"' {
			p.pos += i + 1
			return b.String()
		}
		c := rest[i+1]
		switch c {
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		}
		b.WriteByte(c)
		i += 2
	}
}

func (p *parser) strs() []string {
	p.expect('[')
	if p.err != nil {
		return nil
	}
	if p.pos < len(p.text) && p.text[p.pos] == ']' {
		p.pos++
		return nil
	}
	list := make([]string, 0, 4)
	for first := true; p.more(&first); {
		list = append(list, p.str())
	}
	return list
}

func (p *parser) outputs() map[string]Output {
	p.expect('[')
	outputs := make(map[string]Output, 1)
	for first := true; p.err == nil && p.more(&first); {
		p.expect('(')
		name := p.str()
		if _, twice := outputs[name]; twice {
			p.fail("output %q twice", name)
		}
		p.expect(',')
		var o Output
		o.Path = p.str()
		p.expect(',')
		o.HashAlgo = p.str()
		p.expect(',')
		o.Hash = p.str()
		p.expect(')')
		outputs[name] = o
	}
	return outputs
}

func (p *parser) inputDrvs(d *Derivation) {
	p.expect('[')
	d.InputDrvs = make(map[string][]string, 8)
	for first := true; p.err == nil && p.more(&first); {
		p.expect('(')
		path := p.str()
		if _, twice := d.InputDrvs[path]; twice {
			p.fail("input %q twice", path)
		}
		p.expect(',')
		in := p.input(0)
		p.expect(')')
		d.InputDrvs[path] = in.Outputs
		if len(in.Dynamic) > 0 {
			if d.DynamicInputs == nil {
				d.DynamicInputs = map[string]map[string]DynamicInput{}
			}
			d.DynamicInputs[path] = in.Dynamic
		}
	}
}

// input reads ["out",…], or in the dynamic form also (["out",…],[("out",INPUT),…]).
func (p *parser) input(depth int) DynamicInput {
	if !p.dynamic || p.pos >= len(p.text) || p.text[p.pos] != '(' {
		return DynamicInput{Outputs: p.strs()}
	}
	if depth >= maxNesting {
		p.fail("dynamic inputs nested deeper than %d", maxNesting)
		return DynamicInput{}
	}
	p.expect('(')
	in := DynamicInput{Outputs: p.strs()}
	p.expect(',')
	p.expect('[')
	for first := true; p.err == nil && p.more(&first); {
		p.expect('(')
		name := p.str()
		if _, twice := in.Dynamic[name]; twice {
			p.fail("output %q twice", name)
		}
		p.expect(',')
		if in.Dynamic == nil {
			in.Dynamic = map[string]DynamicInput{}
		}
		in.Dynamic[name] = p.input(depth + 1)
		p.expect(')')
	}
	p.expect(')')
	return in
}

func (p *parser) env() map[string]string {
	p.expect('[')
	env := make(map[string]string, 24)
	for first := true; p.err == nil && p.more(&first); {
		p.expect('(')
		name := p.str()
		p.expect(',')
		before := len(env)
		env[name] = p.str()
		if len(env) == before && p.err == nil {
			p.fail("variable %q twice", name)
		}
		p.expect(')')
	}
	return env
}
