package agentapi

import (
	"errors"
	"slices"

	"github.com/google/uuid"

	"hercules/internal/wire/codec"
)

// Marshal returns the JSON of a document.
func Marshal(v any) ([]byte, error) { return codec.Marshal(v) }

// Unmarshal decodes a document into what v points to.
func Unmarshal(data []byte, v any) error { return codec.Unmarshal(data, v) }

// List is an array. It never encodes as null.
type List[T any] []T

// Map is an object. It never encodes as null.
type Map[K ~string, V any] map[K]V

// NewID returns a random ID.
func NewID() ID { return ID(uuid.NewString()) }

// ParseID accepts an ID in the form of the protocol: with hyphens, also in upper case.
func ParseID(s string) (ID, bool) {
	if len(s) != 36 {
		return "", false
	}
	id := []byte(s)
	for i, c := range id {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return "", false
			}
		case '0' <= c && c <= '9', 'a' <= c && c <= 'f':
		case 'A' <= c && c <= 'F':
			id[i] = c + 'a' - 'A'
		default:
			return "", false
		}
	}
	return ID(id), true
}

// AppendWire implements codec.Encoder. Only a valid ID is encoded.
func (id *ID) AppendWire(b []byte) ([]byte, error) {
	if canonical, ok := ParseID(string(*id)); !ok || canonical != *id {
		return nil, &codec.Error{Msg: "not a lower-case UUID"}
	}
	return codec.AppendString(b, string(*id)), nil
}

// DecodeWire implements codec.Decodable.
func (id *ID) DecodeWire(d *codec.Decoder) error {
	s, err := d.String()
	if err != nil {
		return err
	}
	parsed, ok := ParseID(s)
	if !ok {
		return &codec.Error{Msg: "not a UUID with hyphens"}
	}
	*id = parsed
	return nil
}

// AppendWire implements codec.Encoder.
func (*UnitValue) AppendWire(b []byte) ([]byte, error) { return append(b, "[]"...), nil }

// DecodeWire implements codec.Decodable.
func (*UnitValue) DecodeWire(d *codec.Decoder) error { return d.Skip() }

// AppendWire implements codec.Encoder.
func (*EmptyRecord) AppendWire(b []byte) ([]byte, error) { return append(b, "[]"...), nil }

// DecodeWire implements codec.Decodable.
func (*EmptyRecord) DecodeWire(d *codec.Decoder) error {
	return d.Array(func(int) error { return &codec.Error{Msg: "an element where none should be"} })
}

// AppendWire implements codec.Encoder.
func (e *EvalBuild) AppendWire(b []byte) ([]byte, error) {
	b, err := codec.Append(append(b, '['), &e.Attempt)
	if err != nil {
		return nil, err
	}
	if b, err = codec.Append(append(b, ','), &e.Status); err != nil {
		return nil, err
	}
	return append(b, ']'), nil
}

// DecodeWire implements codec.Decodable.
func (e *EvalBuild) DecodeWire(d *codec.Decoder) error {
	n := 0
	err := d.Array(func(i int) error {
		n++
		switch i {
		case 0:
			return d.Decode(&e.Attempt)
		case 1:
			return d.Decode(&e.Status)
		default:
			return &codec.Error{Msg: "more than two elements"}
		}
	})
	if err == nil && n != 2 {
		return &codec.Error{Msg: "not a pair"}
	}
	return err
}

// Valid says whether the protocol knows t.
func (t AttributeType) Valid() bool {
	return slices.Contains([]AttributeType{Regular, MustFail, MayFail, DependenciesOnly, EffectType}, t)
}

// Valid says whether the protocol knows t.
func (t MessageType) Valid() bool { return t == ErrorMessage || t == TraceMessage }

// Valid says whether the protocol knows s.
func (s DerivationStatus) Valid() bool {
	return slices.Contains([]DerivationStatus{Waiting, Building, BuildFailure, DependencyFailure, BuildSuccess}, s)
}

// Final says whether an attempt with this status is over.
func (s DerivationStatus) Final() bool {
	return s == BuildFailure || s == DependencyFailure || s == BuildSuccess
}

// Valid says whether d is a day.
func (d DayOfWeek) Valid() bool {
	return slices.Contains([]DayOfWeek{"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"}, d)
}

// Less says whether v is older than w.
func (v Version) Less(w Version) bool {
	if v[0] != w[0] {
		return v[0] < w[0]
	}
	return v[1] < w[1]
}

// CheckVersion refuses services that are too old for us (section 3.3).
func (i ServiceInfo) CheckVersion() error {
	if i.Version.Less(Version{2, 0}) {
		return errOldService
	}
	return nil
}

// errOldService has the text that the reference sends as an exception.
//
//lint:ignore ST1005 the protocol's text
var errOldService = errors.New("Expected service version (2,0)")
