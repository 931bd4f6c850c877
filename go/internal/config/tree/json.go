package tree

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds the nesting of a file, and with it the recursion over its tree.
const maxDepth = 200

// ParseJSON reads one JSON document.
func ParseJSON(data []byte) (*Node, error) {
	p := &jsonParser{data: data, dec: json.NewDecoder(bytes.NewReader(data)), line: 1}
	p.dec.UseNumber()
	if i := invalidUTF8(data); i >= 0 {
		return nil, &SyntaxError{p.pos(i), "this is not UTF-8 text"}
	}
	n, err := p.value(0)
	if err != nil {
		return nil, p.syntax(err)
	}
	at := p.next()
	if _, err := p.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, &SyntaxError{p.pos(at), "something follows the end of the document"}
	}
	return n, nil
}

type jsonParser struct {
	data []byte
	dec  *json.Decoder
	// The last place that was asked for: places are asked for in ascending order, so that each line is counted once.
	offset, line, lineStart int
}

// pos turns an offset into a place. Columns count characters.
func (p *jsonParser) pos(offset int) Pos {
	offset = min(offset, len(p.data))
	if offset < p.offset {
		p.offset, p.line, p.lineStart = 0, 1, 0
	}
	between := p.data[p.offset:offset]
	p.line += bytes.Count(between, []byte{'\n'})
	if i := bytes.LastIndexByte(between, '\n'); i >= 0 {
		p.lineStart = p.offset + i + 1
	}
	p.offset = offset
	return Pos{p.line, utf8.RuneCount(p.data[p.lineStart:offset]) + 1}
}

// next is the offset of the next token.
func (p *jsonParser) next() int {
	i := int(p.dec.InputOffset())
	for i < len(p.data) && strings.IndexByte(" \t\r\n,:", p.data[i]) >= 0 {
		i++
	}
	return i
}

func (p *jsonParser) value(depth int) (*Node, error) {
	n := &Node{Pos: p.pos(p.next())}
	if depth > maxDepth {
		return nil, &SyntaxError{n.Pos, "the nesting is too deep"}
	}
	tok, err := p.dec.Token()
	if err != nil {
		return nil, err
	}
	switch v := tok.(type) {
	case nil:
		n.Kind = Null
	case bool:
		n.Kind, n.Bool = Bool, v
	case string:
		n.Kind, n.Text = String, v
	case json.Number:
		n.number(v)
	case json.Delim:
		if v == '[' {
			n.Kind = List
			for p.dec.More() {
				item, err := p.value(depth + 1)
				if err != nil {
					return nil, err
				}
				n.Items = append(n.Items, item)
			}
		} else {
			n.Kind = Table
			if err := p.entries(n, depth); err != nil {
				return nil, err
			}
		}
		if _, err := p.dec.Token(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (p *jsonParser) entries(n *Node, depth int) error {
	seen := map[string]bool{}
	for p.dec.More() {
		at := p.pos(p.next())
		tok, err := p.dec.Token()
		if err != nil {
			return err
		}
		name, ok := tok.(string)
		if !ok {
			return &SyntaxError{at, "expected a name in quotes"}
		}
		if seen[name] {
			return &SyntaxError{at, "the name " + quote(name) + " is here for the second time"}
		}
		seen[name] = true
		v, err := p.value(depth + 1)
		if err != nil {
			return err
		}
		n.Entries = append(n.Entries, Entry{name, at, v})
	}
	return nil
}

func (n *Node) number(v json.Number) {
	i, err := v.Int64()
	switch {
	case err == nil:
		n.Kind, n.Int = Int, i
	case strings.ContainsAny(v.String(), ".eE"):
		n.Kind, n.Text = Float, v.String()
	default:
		n.Kind, n.Text = Int, v.String()
	}
}

// syntax gives an error of the decoder its place.
func (p *jsonParser) syntax(err error) error {
	if s, ok := errors.AsType[*SyntaxError](err); ok {
		return s
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &SyntaxError{p.pos(len(p.data)), "the file ends too early"}
	}
	// The decoder's own offset is sometimes that of the offending byte and sometimes one more: take the token's start.
	return &SyntaxError{p.pos(p.next()), err.Error()}
}

func invalidUTF8(data []byte) int {
	if utf8.Valid(data) {
		return -1
	}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

func quote(s string) string { return string(appendString(nil, s)) }
