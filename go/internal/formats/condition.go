package formats

import (
	"strconv"

	"hercules/internal/wire/codec"
)

// Condition says when something may be used. Exactly one field is set.
type Condition struct {
	Or              *[]Condition
	And             *[]Condition
	IsBranch        *string
	IsRepo          *string
	IsOwner         *string
	IsDefaultBranch bool
	IsTag           bool
	Const           *bool
}

// AppendWire implements codec.Encoder.
func (c *Condition) AppendWire(b []byte) ([]byte, error) {
	n := 0
	object := func(key string, v any) (err error) {
		n++
		b = append(codec.AppendString(append(b, '{'), key), ':')
		if b, err = codec.Append(b, v); err == nil {
			b = append(b, '}')
		}
		return err
	}
	var err error
	if c.Or != nil {
		err = object("or", c.Or)
	}
	if c.And != nil && err == nil {
		err = object("and", c.And)
	}
	for _, o := range []struct {
		key   string
		value *string
	}{{"isBranch", c.IsBranch}, {"isRepo", c.IsRepo}, {"isOwner", c.IsOwner}} {
		if o.value != nil && err == nil {
			err = object(o.key, o.value)
		}
	}
	if err != nil {
		return nil, err
	}
	if c.IsDefaultBranch {
		n++
		b = append(b, `"isDefaultBranch"`...)
	}
	if c.IsTag {
		n++
		b = append(b, `"isTag"`...)
	}
	if c.Const != nil {
		n++
		b = strconv.AppendBool(b, *c.Const)
	}
	if n != 1 {
		return nil, &codec.Error{Msg: "a condition says " + strconv.Itoa(n) + " things instead of one"}
	}
	return b, nil
}

// DecodeWire implements codec.Decodable.
func (c *Condition) DecodeWire(d *codec.Decoder) error {
	*c = Condition{}
	switch d.Peek() {
	case '"':
		s, err := d.String()
		switch {
		case err != nil:
			return err
		case s == "isDefaultBranch":
			c.IsDefaultBranch = true
		case s == "isTag":
			c.IsTag = true
		default:
			return &codec.Error{Msg: strconv.Quote(s) + ` is no condition; "isDefaultBranch" and "isTag" are`}
		}
		return nil
	case 't', 'f':
		x, err := d.Bool()
		c.Const = &x
		return err
	}
	n := 0
	err := d.Object(func(key []byte) (err error) {
		n++
		switch string(key) {
		case "or":
			c.Or = new([]Condition)
			err = d.Decode(c.Or)
		case "and":
			c.And = new([]Condition)
			err = d.Decode(c.And)
		case "isBranch":
			c.IsBranch, err = text(d)
		case "isRepo":
			c.IsRepo, err = text(d)
		case "isOwner":
			c.IsOwner, err = text(d)
		default:
			return &codec.Error{Msg: strconv.Quote(string(key)) + " is no condition"}
		}
		if err != nil {
			return codec.Key(string(key), err)
		}
		return nil
	})
	if err == nil && n != 1 {
		return &codec.Error{Msg: "a condition must have exactly one key, not " + strconv.Itoa(n)}
	}
	return err
}

func text(d *codec.Decoder) (*string, error) {
	s, err := d.String()
	return &s, err
}
