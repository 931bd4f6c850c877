// Package codec encodes Go values to, and decodes them from, exactly the JSON that the wire protocols ask for
// (agent protocol, section 0). encoding/json differs in what matters here: it writes null for a nil slice,
// takes a missing key for a zero value, knows no sum types and loses nothing but speed on the hot paths.
//
// It must not know any message; packages agentapi, publicapi and formats hold those.
//
// How a Go type maps to JSON:
//
//   - A struct with json tags is a record: every field is written; a field that is no pointer is required
//     when read, unless its tag `default:"…"` gives the JSON text that an absent key stands for. null is
//     never a stand-in for a required value. Unknown keys are ignored, the first of two equal keys counts.
//   - A pointer field is optional: nil is null, and an absent key is nil. With omitempty nil is left out.
//   - A struct of pointers without json tags is a sum type: exactly one field is set, its name is the tag.
//     `sum:"Name"` gives another tag. A field of type [Unit] is a constructor without data. With
//     `sum:",unit"` it carries a unit as contents, with `sum:",inline"` the fields of its record stand next
//     to the tag.
//   - Slices are arrays and maps are objects, also when nil. Maps are written in key order.
//   - time.Time is written in UTC. json.RawMessage is any value.
//   - A string type with a method Valid() bool is checked in both directions.
//   - Anything else has the methods of [Encoder] and [Decodable].
package codec

import (
	"errors"
	"fmt"
	"reflect"
)

// Encoder is a type with its own encoding. The method is on the pointer.
type Encoder interface {
	AppendWire(b []byte) ([]byte, error)
}

// Decodable is a type with its own decoding.
type Decodable interface {
	DecodeWire(d *Decoder) error
}

// Unit is a constructor without data.
type Unit struct{}

// Error is a document that does not fit its type.
type Error struct {
	Path string

	Msg string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return e.Msg
	}
	return e.Path + ": " + e.Msg
}

func errorf(format string, args ...any) error { return &Error{Msg: fmt.Sprintf(format, args...)} }

// at puts a step before the path of err.
func at(step string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return &Error{Path: step + e.Path, Msg: e.Msg}
	}
	return &Error{Path: step, Msg: err.Error()}
}

// Key says that err happened in the value of an object's key.
func Key(key string, err error) error { return at("."+key, err) }

// Index says that err happened in an element of an array.
func Index(i int, err error) error { return at(fmt.Sprintf("[%d]", i), err) }

// Marshal returns the JSON of v. A nil pointer is null.
func Marshal(v any) ([]byte, error) { return Append(nil, v) }

// Append appends the JSON of v to b. On error it returns b unchanged in its length.
func Append(b []byte, v any) ([]byte, error) {
	out, err := appendAny(b, v)
	if err != nil {
		return b, fmt.Errorf("encoding %T: %w", v, err)
	}
	return out, nil
}

func appendAny(b []byte, v any) ([]byte, error) {
	rv := reflect.ValueOf(v)
	if !rv.IsValid() {
		return nil, errorf("no value")
	}
	if rv.Kind() == reflect.Pointer {
		if rv.IsNil() {
			return append(b, "null"...), nil
		}
		if e, ok := v.(Encoder); ok {
			return e.AppendWire(b)
		}
		rv = rv.Elem()
	} else {
		p := reflect.New(rv.Type())
		p.Elem().Set(rv)
		rv = p.Elem()
	}
	return planFor(rv.Type()).enc(b, rv)
}

// Unmarshal decodes one JSON document into the value that v points to. What v points to should be zero.
func Unmarshal(data []byte, v any) error {
	d := NewDecoder(data)
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decoding %T: %w", v, err)
	}
	if err := d.End(); err != nil {
		return fmt.Errorf("decoding %T: %w", v, err)
	}
	return nil
}

// Decode decodes the next value into what v points to.
func (d *Decoder) Decode(v any) error {
	if u, ok := v.(Decodable); ok {
		return u.DecodeWire(d)
	}
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Pointer || rv.IsNil() {
		return errorf("decoding needs a pointer, not %T", v)
	}
	return planFor(rv.Type().Elem()).dec(d, rv.Elem())
}
