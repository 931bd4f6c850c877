package codec

import (
	"fmt"
	"reflect"
	"strings"
)

// record is the plan of a struct with json tags.
type record struct {
	fields []field
	byName map[string]int
}

type field struct {
	name      string
	index     int
	plan      *plan
	optional  bool
	omitEmpty bool
	def       []byte
}

func structPlan(p *plan, t reflect.Type, made map[reflect.Type]*plan) {
	tagged := 0
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("json") != "" {
			tagged++
		}
	}
	switch {
	case t.NumField() == 0:
		panic(fmt.Sprintf("codec: %s is empty and has no methods of its own", t))
	case tagged == t.NumField():
		recordPlan(p, t, made)
	case tagged == 0:
		sumPlan(p, t, made)
	default:
		panic(fmt.Sprintf("codec: %s is neither a record nor a sum", t))
	}
}

func recordPlan(p *plan, t reflect.Type, made map[reflect.Type]*plan) {
	r := &record{byName: map[string]int{}}
	p.record = r
	for i := range t.NumField() {
		sf := t.Field(i)
		name, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
		f := field{
			name: name, index: i, plan: makePlan(sf.Type, made),
			optional: sf.Type.Kind() == reflect.Pointer, omitEmpty: options == "omitempty",
		}
		if def, ok := sf.Tag.Lookup("default"); ok {
			f.def = []byte(def)
		}
		if f.omitEmpty && !f.optional {
			panic(fmt.Sprintf("codec: %s.%s is required and must not be omitted", t, sf.Name))
		}
		r.byName[name] = len(r.fields)
		r.fields = append(r.fields, f)
	}
	if len(r.fields) > 64 {
		panic(fmt.Sprintf("codec: %s has too many fields", t))
	}
	p.enc = func(b []byte, v reflect.Value) ([]byte, error) {
		b = append(b, '{')
		b, err := r.append(b, v, false)
		if err != nil {
			return nil, err
		}
		return append(b, '}'), nil
	}
	p.dec = func(d *Decoder, v reflect.Value) error { return r.decode(d, v) }
}

// append appends the fields, the first after a comma if more is set.
func (r *record) append(b []byte, v reflect.Value, more bool) ([]byte, error) {
	for i := range r.fields {
		f := &r.fields[i]
		x := v.Field(f.index)
		if f.omitEmpty && x.IsNil() {
			continue
		}
		if more {
			b = append(b, ',')
		}
		more = true
		b = append(AppendString(b, f.name), ':')
		var err error
		if b, err = f.plan.enc(b, x); err != nil {
			return nil, Key(f.name, err)
		}
	}
	return b, nil
}

func (r *record) decode(d *Decoder, v reflect.Value) error {
	var seen uint64
	next := 0
	err := d.Object(func(key []byte) error {
		i := next
		if i >= len(r.fields) || string(key) != r.fields[i].name {
			var ok bool
			if i, ok = r.byName[string(key)]; !ok {
				return d.Skip()
			}
		}
		if seen&(1<<i) != 0 {
			return d.Skip()
		}
		seen |= 1 << i
		next = i + 1
		f := &r.fields[i]
		if err := f.plan.dec(d, v.Field(f.index)); err != nil {
			return Key(f.name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range r.fields {
		f := &r.fields[i]
		switch {
		case seen&(1<<i) != 0:
		case f.def != nil:
			if err := f.plan.dec(NewDecoder(f.def), v.Field(f.index)); err != nil {
				return Key(f.name, err)
			}
		case !f.optional:
			return errorf("key %q is missing", f.name)
		}
	}
	return nil
}

// How a constructor holds its data.
type shape int

const (
	contents shape = iota // {"tag":T,"contents":value}
	nullary               // {"tag":T}
	unit                  // {"tag":T,"contents":[]}
	inline                // {"tag":T, fields}
)

type constructor struct {
	tag   string
	index int
	shape shape
	typ   reflect.Type
	plan  *plan
	head  string
}

// sum is the plan of a struct of pointers.
type sum struct {
	name  string
	cons  []constructor
	byTag map[string]int
}

func sumPlan(p *plan, t reflect.Type, made map[reflect.Type]*plan) {
	s := &sum{name: t.Name(), byTag: map[string]int{}}
	for i := range t.NumField() {
		sf := t.Field(i)
		if sf.Type.Kind() != reflect.Pointer {
			panic(fmt.Sprintf("codec: %s.%s is no pointer", t, sf.Name))
		}
		tag, option, _ := strings.Cut(sf.Tag.Get("sum"), ",")
		if tag == "" {
			tag = sf.Name
		}
		c := constructor{tag: tag, index: i, typ: sf.Type.Elem(), head: `{"tag":"` + tag + `"`}
		switch {
		case option == "unit":
			c.shape = unit
			c.head += `,"contents":[]`
		case c.typ == unitType:
			c.shape = nullary
		case option == "inline":
			c.shape = inline
			c.plan = makePlan(c.typ, made)
			if c.plan.record == nil {
				panic(fmt.Sprintf("codec: %s.%s is no record", t, sf.Name))
			}
		default:
			c.plan = makePlan(c.typ, made)
			c.head += `,"contents":`
		}
		s.byTag[tag] = len(s.cons)
		s.cons = append(s.cons, c)
	}
	p.enc, p.dec = s.append, s.decode
}

func (s *sum) append(b []byte, v reflect.Value) ([]byte, error) {
	var c *constructor
	for i := range s.cons {
		if v.Field(s.cons[i].index).IsNil() {
			continue
		}
		if c != nil {
			return nil, errorf("%s is both %s and %s", s.name, c.tag, s.cons[i].tag)
		}
		c = &s.cons[i]
	}
	if c == nil {
		return nil, errorf("%s has no value", s.name)
	}
	b = append(b, c.head...)
	x := v.Field(c.index).Elem()
	var err error
	switch c.shape {
	case contents:
		b, err = c.plan.enc(b, x)
	case inline:
		b, err = c.plan.record.append(b, x, true)
	case nullary, unit:
	}
	if err != nil {
		return nil, Key(c.tag, err)
	}
	return append(b, '}'), nil
}

func (s *sum) decode(d *Decoder, v reflect.Value) error {
	// The reference writes keys in alphabetical order, so contents comes before tag: look for the tag first.
	start, depth := *d, d.depth
	var c *constructor
	at := -1 // of the contents
	err := d.Object(func(key []byte) error {
		switch {
		case c == nil && string(key) == "tag":
			tag, err := d.String()
			if err != nil {
				return Key("tag", err)
			}
			i, ok := s.byTag[tag]
			if !ok {
				return errorf("%q is no tag of %s", tag, s.name)
			}
			c = &s.cons[i]
			return nil
		case at < 0 && string(key) == "contents":
			d.space()
			at = d.pos
			if c != nil && c.shape == contents {
				return s.decodeContents(d, c, v)
			}
		}
		return d.Skip()
	})
	switch {
	case err != nil:
		return err
	case c == nil:
		return errorf("%s without tag", s.name)
	case (c.shape == contents || c.shape == unit) && at < 0:
		return errorf("%s %s without contents", s.name, c.tag)
	}
	field := v.Field(c.index)
	switch {
	case c.shape == inline:
		end := d.pos
		*d = start
		x := reflect.New(c.typ)
		if err := c.plan.record.decode(d, x.Elem()); err != nil {
			return Key(c.tag, err)
		}
		d.pos = end
		field.Set(x)
	case c.shape != contents:
		field.Set(reflect.New(c.typ))
	case field.IsNil():
		end := d.pos
		d.pos = at
		d.depth = depth + 1
		if err := s.decodeContents(d, c, v); err != nil {
			return err
		}
		d.pos, d.depth = end, depth
	}
	return nil
}

func (s *sum) decodeContents(d *Decoder, c *constructor, v reflect.Value) error {
	x := reflect.New(c.typ)
	if err := c.plan.dec(d, x.Elem()); err != nil {
		return Key(c.tag, err)
	}
	v.Field(c.index).Set(x)
	return nil
}
