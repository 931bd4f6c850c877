package codec

import (
	"encoding/json"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds the nesting of a document, so that no document can exhaust the stack.
const maxDepth = 1000

// Decoder reads a JSON document value by value.
type Decoder struct {
	b     []byte
	pos   int
	depth int
}

// NewDecoder returns a decoder of b, which must not change until all is read.
func NewDecoder(b []byte) *Decoder { return &Decoder{b: b} }

func (d *Decoder) space() {
	for d.pos < len(d.b) {
		switch d.b[d.pos] {
		case ' ', '\t', '\n', '\r':
			d.pos++
		default:
			return
		}
	}
}

// Peek returns the first byte of the next value, or 0 at the end.
func (d *Decoder) Peek() byte {
	d.space()
	if d.pos < len(d.b) {
		return d.b[d.pos]
	}
	return 0
}

// End checks that nothing but white space is left.
func (d *Decoder) End() error {
	if d.space(); d.pos != len(d.b) {
		return errorf("data after the end of the document at byte %d", d.pos)
	}
	return nil
}

func (d *Decoder) syntax(want string) error {
	switch c := d.Peek(); c {
	case 0:
		if d.pos >= len(d.b) {
			return errorf("the document ends where %s should be", want)
		}
		return errorf("a zero byte where %s should be", want)
	case '{':
		return errorf("an object where %s should be", want)
	case '[':
		return errorf("an array where %s should be", want)
	case '"':
		return errorf("a string where %s should be", want)
	case 'n':
		return errorf("null where %s should be", want)
	case 't', 'f':
		return errorf("a boolean where %s should be", want)
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return errorf("a number where %s should be", want)
	default:
		return errorf("character %q where %s should be, at byte %d", rune(c), want, d.pos)
	}
}

func (d *Decoder) literal(s string) bool {
	if len(d.b)-d.pos < len(s) || string(d.b[d.pos:d.pos+len(s)]) != s {
		return false
	}
	d.pos += len(s)
	return true
}

// Null consumes null if that is the next value.
func (d *Decoder) Null() bool { return d.Peek() == 'n' && d.literal("null") }

// Bool reads a boolean.
func (d *Decoder) Bool() (bool, error) {
	d.space()
	switch {
	case d.literal("true"):
		return true, nil
	case d.literal("false"):
		return false, nil
	}
	return false, d.syntax("a boolean")
}

// Object reads an object. f is called for each key and must read the value.
func (d *Decoder) Object(f func(key []byte) error) error {
	if d.Peek() != '{' {
		return d.syntax("an object")
	}
	if d.depth++; d.depth > maxDepth {
		return errorf("nested too deeply")
	}
	d.pos++
	if d.Peek() == '}' {
		d.pos++
		d.depth--
		return nil
	}
	for {
		if d.Peek() != '"' {
			return d.syntax("a key")
		}
		key, err := d.stringBytes()
		if err != nil {
			return err
		}
		if d.Peek() != ':' {
			return d.syntax("a colon")
		}
		d.pos++
		if err := f(key); err != nil {
			return err
		}
		switch d.Peek() {
		case ',':
			d.pos++
		case '}':
			d.pos++
			d.depth--
			return nil
		default:
			return d.syntax("a comma or the end of the object")
		}
	}
}

// Array reads an array. f is called for each element and must read it.
func (d *Decoder) Array(f func(i int) error) error {
	if d.Peek() != '[' {
		return d.syntax("an array")
	}
	if d.depth++; d.depth > maxDepth {
		return errorf("nested too deeply")
	}
	d.pos++
	if d.Peek() == ']' {
		d.pos++
		d.depth--
		return nil
	}
	for i := 0; ; i++ {
		if err := f(i); err != nil {
			return err
		}
		switch d.Peek() {
		case ',':
			d.pos++
		case ']':
			d.pos++
			d.depth--
			return nil
		default:
			return d.syntax("a comma or the end of the array")
		}
	}
}

// Skip reads any value and checks its syntax.
func (d *Decoder) Skip() error {
	switch d.Peek() {
	case '{':
		return d.Object(func([]byte) error { return d.Skip() })
	case '[':
		return d.Array(func(int) error { return d.Skip() })
	case '"':
		_, err := d.stringBytes()
		return err
	case 't', 'f':
		_, err := d.Bool()
		return err
	case 'n':
		if d.Null() {
			return nil
		}
		return d.syntax("a value")
	default:
		_, err := d.number("a value")
		return err
	}
}

// Raw reads any value and returns a copy of its text.
func (d *Decoder) Raw() (json.RawMessage, error) {
	d.space()
	start := d.pos
	if err := d.Skip(); err != nil {
		return nil, err
	}
	return appendValid(make([]byte, 0, d.pos-start), d.b[start:d.pos]), nil
}

// String reads a string. Bytes that are not UTF-8 become U+FFFD.
func (d *Decoder) String() (string, error) {
	if d.Peek() != '"' {
		return "", d.syntax("a string")
	}
	b, err := d.stringBytes()
	return string(b), err
}

// stringBytes reads a string that starts at pos. What it returns may be part of the document.
func (d *Decoder) stringBytes() ([]byte, error) {
	start := d.pos + 1
	for i := start; i < len(d.b); i++ {
		switch c := d.b[i]; {
		case c == '"':
			d.pos = i + 1
			return d.b[start:i], nil
		case c == '\\' || c >= utf8.RuneSelf:
			return d.stringSlow(start, i)
		case c < ' ':
			return nil, errorf("control character in a string at byte %d", i)
		}
	}
	return nil, errorf("the document ends within a string")
}

func (d *Decoder) stringSlow(start, i int) ([]byte, error) {
	out := append(make([]byte, 0, i-start+64), d.b[start:i]...)
	for i < len(d.b) {
		c := d.b[i]
		switch {
		case c == '"':
			d.pos = i + 1
			return out, nil
		case c == '\\':
			var err error
			if out, i, err = d.escape(out, i+1); err != nil {
				return nil, err
			}
		case c < ' ':
			return nil, errorf("control character in a string at byte %d", i)
		case c < utf8.RuneSelf:
			out = append(out, c)
			i++
		default:
			r, n := utf8.DecodeRune(d.b[i:])
			out = utf8.AppendRune(out, r)
			i += n
		}
	}
	return nil, errorf("the document ends within a string")
}

// escape reads the escape sequence whose first byte after the backslash is at i.
func (d *Decoder) escape(out []byte, i int) ([]byte, int, error) {
	if i >= len(d.b) {
		return nil, 0, errorf("the document ends within a string")
	}
	switch c := d.b[i]; c {
	case '"', '\\', '/':
		return append(out, c), i + 1, nil
	case 'b':
		return append(out, '\b'), i + 1, nil
	case 'f':
		return append(out, '\f'), i + 1, nil
	case 'n':
		return append(out, '\n'), i + 1, nil
	case 'r':
		return append(out, '\r'), i + 1, nil
	case 't':
		return append(out, '\t'), i + 1, nil
	case 'u':
		r, ok := d.hex4(i + 1)
		if !ok {
			return nil, 0, errorf("bad escape sequence at byte %d", i)
		}
		i += 5
		if utf16.IsSurrogate(r) {
			// Section 0: an unpaired surrogate makes the whole document invalid.
			low, ok := rune(0), false
			if i+1 < len(d.b) && d.b[i] == '\\' && d.b[i+1] == 'u' {
				low, ok = d.hex4(i + 2)
			}
			pair := utf16.DecodeRune(r, low)
			if !ok || pair == utf8.RuneError {
				return nil, 0, errorf("unpaired surrogate at byte %d", i)
			}
			r = pair
			i += 6
		}
		return utf8.AppendRune(out, r), i, nil
	default:
		return nil, 0, errorf("bad escape sequence at byte %d", i)
	}
}

func (d *Decoder) hex4(i int) (rune, bool) {
	if i+4 > len(d.b) {
		return 0, false
	}
	var r rune
	for _, c := range d.b[i : i+4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
