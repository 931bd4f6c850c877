package derivation

import (
	"maps"
	"slices"
)

// Append appends the ATerm form to b. Where Nix has sets and maps, it is sorted.
func (d *Derivation) Append(b []byte) []byte {
	if len(d.DynamicInputs) > 0 {
		b = append(b, `DrvWithVersion("xp-dyn-drv",[`...)
	} else {
		b = append(b, "Derive(["...)
	}
	for i, name := range slices.Sorted(maps.Keys(d.Outputs)) {
		b = comma(b, i)
		o := d.Outputs[name]
		b = append(b, '(')
		b = appendStr(b, name)
		b = append(b, ',')
		b = appendStr(b, o.Path)
		b = append(b, ',')
		b = appendStr(b, o.HashAlgo)
		b = append(b, ',')
		b = appendStr(b, o.Hash)
		b = append(b, ')')
	}
	b = append(b, "],["...)
	for i, path := range slices.Sorted(maps.Keys(d.InputDrvs)) {
		b = comma(b, i)
		b = append(b, '(')
		b = appendStr(b, path)
		b = append(b, ',')
		b = appendInput(b, DynamicInput{Outputs: d.InputDrvs[path], Dynamic: d.DynamicInputs[path]})
		b = append(b, ')')
	}
	b = append(b, "],"...)
	b = appendSet(b, d.InputSrcs)
	b = append(b, ',')
	b = appendStr(b, d.Platform)
	b = append(b, ',')
	b = appendStr(b, d.Builder)
	b = append(b, ',')
	b = appendList(b, d.Args)
	b = append(b, ",["...)
	for i, name := range slices.Sorted(maps.Keys(d.Env)) {
		b = comma(b, i)
		b = append(b, '(')
		b = appendStr(b, name)
		b = append(b, ',')
		b = appendStr(b, d.Env[name])
		b = append(b, ')')
	}
	return append(b, "])"...)
}

func appendInput(b []byte, in DynamicInput) []byte {
	if len(in.Dynamic) == 0 {
		return appendSet(b, in.Outputs)
	}
	b = append(b, '(')
	b = appendSet(b, in.Outputs)
	b = append(b, ",["...)
	for i, name := range slices.Sorted(maps.Keys(in.Dynamic)) {
		b = comma(b, i)
		b = append(b, '(')
		b = appendStr(b, name)
		b = append(b, ',')
		b = appendInput(b, in.Dynamic[name])
		b = append(b, ')')
	}
	return append(b, "])"...)
}

func appendSet(b []byte, set []string) []byte {
	if !slices.IsSorted(set) {
		set = slices.Sorted(slices.Values(set))
	}
	return appendList(b, set)
}

func appendList(b []byte, list []string) []byte {
	b = append(b, '[')
	for i, s := range list {
		b = comma(b, i)
		b = appendStr(b, s)
	}
	return append(b, ']')
}

func comma(b []byte, i int) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	return b
}

func appendStr(b []byte, s string) []byte {
	b = append(b, '"')
	done := 0
	for i := range len(s) {
		c := s[i]
		switch c {
		case '"', '\\':
		case '\n':
			c = 'n'
		case '\r':
			c = 'r'
		case '\t':
			c = 't'
		default:
			continue
		}
		b = append(b, s[done:i]...)
		b = append(b, '\\', c)
		done = i + 1
	}
	b = append(b, s[done:]...)
	return append(b, '"')
}
