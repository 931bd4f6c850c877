package codec

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"
)

// plan is how a type is encoded and decoded. Values given to both are addressable.
type plan struct {
	enc func(b []byte, v reflect.Value) ([]byte, error)
	dec func(d *Decoder, v reflect.Value) error

	record *record
}

var (
	plans    sync.Map // reflect.Type to *plan
	planning sync.Mutex
)

func planFor(t reflect.Type) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	planning.Lock()
	defer planning.Unlock()
	made := map[reflect.Type]*plan{}
	p := makePlan(t, made)
	for t, p := range made {
		plans.Store(t, p)
	}
	return p
}

// Check panics unless t, and all that it is made of, can be encoded and decoded.
func Check(t reflect.Type) { planFor(t) }

var (
	encoderType   = reflect.TypeFor[Encoder]()
	decodableType = reflect.TypeFor[Decodable]()
	timeType      = reflect.TypeFor[time.Time]()
	rawType       = reflect.TypeFor[json.RawMessage]()
	unitType      = reflect.TypeFor[Unit]()
)

type validator interface{ Valid() bool }

// makePlan panics on types that have no encoding, which is a programmer's error.
func makePlan(t reflect.Type, made map[reflect.Type]*plan) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	if p, ok := made[t]; ok {
		return p
	}
	p := &plan{}
	made[t] = p
	switch {
	case reflect.PointerTo(t).Implements(encoderType):
		p.enc = func(b []byte, v reflect.Value) ([]byte, error) { return v.Addr().Interface().(Encoder).AppendWire(b) }
		if !reflect.PointerTo(t).Implements(decodableType) {
			// Hand-written only for speed: decoding is as planned.
			q := &plan{}
			structPlan(q, t, made)
			p.dec, p.record = q.dec, q.record
			return p
		}
		p.dec = func(d *Decoder, v reflect.Value) error { return v.Addr().Interface().(Decodable).DecodeWire(d) }
	case t == timeType:
		p.enc = func(b []byte, v reflect.Value) ([]byte, error) {
			return AppendTime(b, *v.Addr().Interface().(*time.Time))
		}
		p.dec = func(d *Decoder, v reflect.Value) (err error) {
			*v.Addr().Interface().(*time.Time), err = d.Time()
			return err
		}
	case t == rawType:
		p.enc, p.dec = encodeRaw, func(d *Decoder, v reflect.Value) (err error) {
			*v.Addr().Interface().(*json.RawMessage), err = d.Raw()
			return err
		}
	default:
		kindPlan(p, t, made)
	}
	return p
}

func encodeRaw(b []byte, v reflect.Value) ([]byte, error) {
	raw := v.Bytes()
	if len(raw) == 0 {
		return append(b, "null"...), nil
	}
	d := NewDecoder(raw)
	if err := d.Skip(); err != nil {
		return nil, err
	}
	if err := d.End(); err != nil {
		return nil, err
	}
	return appendValid(b, raw), nil
}

func kindPlan(p *plan, t reflect.Type, made map[reflect.Type]*plan) {
	switch t.Kind() {
	case reflect.Bool:
		p.enc = func(b []byte, v reflect.Value) ([]byte, error) { return strconv.AppendBool(b, v.Bool()), nil }
		p.dec = func(d *Decoder, v reflect.Value) error {
			x, err := d.Bool()
			v.SetBool(x)
			return err
		}
	case reflect.Int64:
		p.enc = func(b []byte, v reflect.Value) ([]byte, error) { return strconv.AppendInt(b, v.Int(), 10), nil }
		p.dec = func(d *Decoder, v reflect.Value) error {
			x, err := d.Int64()
			v.SetInt(x)
			return err
		}
	case reflect.Uint64:
		p.enc = func(b []byte, v reflect.Value) ([]byte, error) { return strconv.AppendUint(b, v.Uint(), 10), nil }
		p.dec = func(d *Decoder, v reflect.Value) error {
			x, err := d.Uint64()
			v.SetUint(x)
			return err
		}
	case reflect.String:
		stringPlan(p, t)
	case reflect.Pointer:
		pointerPlan(p, t, made)
	case reflect.Slice, reflect.Array:
		listPlan(p, t, made)
	case reflect.Map:
		mapPlan(p, t, made)
	case reflect.Struct:
		structPlan(p, t, made)
	default:
		panic(fmt.Sprintf("codec: %s has no encoding", t))
	}
}

func stringPlan(p *plan, t reflect.Type) {
	p.enc = func(b []byte, v reflect.Value) ([]byte, error) { return AppendString(b, v.String()), nil }
	p.dec = func(d *Decoder, v reflect.Value) error {
		s, err := d.String()
		v.SetString(s)
		return err
	}
	if !t.Implements(reflect.TypeFor[validator]()) {
		return
	}
	enc, dec := p.enc, p.dec
	p.enc = func(b []byte, v reflect.Value) ([]byte, error) {
		if !v.Interface().(validator).Valid() {
			return nil, errorf("%q is no %s", v.String(), t.Name())
		}
		return enc(b, v)
	}
	p.dec = func(d *Decoder, v reflect.Value) error {
		if err := dec(d, v); err != nil {
			return err
		}
		if !v.Interface().(validator).Valid() {
			return errorf("%q is no %s", v.String(), t.Name())
		}
		return nil
	}
}

func pointerPlan(p *plan, t reflect.Type, made map[reflect.Type]*plan) {
	elem := makePlan(t.Elem(), made)
	p.enc = func(b []byte, v reflect.Value) ([]byte, error) {
		if v.IsNil() {
			return append(b, "null"...), nil
		}
		return elem.enc(b, v.Elem())
	}
	p.dec = func(d *Decoder, v reflect.Value) error {
		if d.Null() {
			v.SetZero()
			return nil
		}
		x := reflect.New(t.Elem())
		if err := elem.dec(d, x.Elem()); err != nil {
			return err
		}
		v.Set(x)
		return nil
	}
}

func listPlan(p *plan, t reflect.Type, made map[reflect.Type]*plan) {
	elem := makePlan(t.Elem(), made)
	p.enc = func(b []byte, v reflect.Value) ([]byte, error) {
		b = append(b, '[')
		for i := range v.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			var err error
			if b, err = elem.enc(b, v.Index(i)); err != nil {
				return nil, Index(i, err)
			}
		}
		return append(b, ']'), nil
	}
	if t.Kind() == reflect.Array {
		p.dec = func(d *Decoder, v reflect.Value) error {
			n := 0
			err := d.Array(func(i int) error {
				if n++; n > v.Len() {
					return errorf("more than %d elements", v.Len())
				}
				return indexed(i, elem.dec(d, v.Index(i)))
			})
			if err == nil && n < v.Len() {
				return errorf("%d elements where %d should be", n, v.Len())
			}
			return err
		}
		return
	}
	p.dec = func(d *Decoder, v reflect.Value) error {
		v.Set(reflect.MakeSlice(t, 0, 0))
		return d.Array(func(i int) error {
			if i >= v.Cap() {
				v.Grow(max(2, i))
			}
			v.SetLen(i + 1)
			return indexed(i, elem.dec(d, v.Index(i)))
		})
	}
}

func indexed(i int, err error) error {
	if err == nil {
		return nil
	}
	return Index(i, err)
}

func mapPlan(p *plan, t reflect.Type, made map[reflect.Type]*plan) {
	if t.Key().Kind() != reflect.String {
		panic(fmt.Sprintf("codec: the keys of %s are no strings", t))
	}
	elem := makePlan(t.Elem(), made)
	p.enc = func(b []byte, v reflect.Value) ([]byte, error) {
		keys := make([]string, 0, v.Len())
		for it := v.MapRange(); it.Next(); {
			keys = append(keys, it.Key().String())
		}
		slices.Sort(keys)
		b = append(b, '{')
		x := reflect.New(t.Elem()).Elem()
		for i, key := range keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(AppendString(b, key), ':')
			x.Set(v.MapIndex(reflect.ValueOf(key).Convert(t.Key())))
			var err error
			if b, err = elem.enc(b, x); err != nil {
				return nil, Key(key, err)
			}
		}
		return append(b, '}'), nil
	}
	p.dec = func(d *Decoder, v reflect.Value) error {
		m := reflect.MakeMap(t)
		v.Set(m)
		return d.Object(func(k []byte) error {
			key := reflect.ValueOf(string(k)).Convert(t.Key())
			if m.MapIndex(key).IsValid() {
				return d.Skip()
			}
			x := reflect.New(t.Elem()).Elem()
			if err := elem.dec(d, x); err != nil {
				return Key(string(k), err)
			}
			m.SetMapIndex(key, x)
			return nil
		})
	}
}
