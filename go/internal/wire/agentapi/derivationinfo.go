package agentapi

import (
	"slices"
	"strconv"

	"hercules/internal/wire/codec"
)

// AppendWire implements codec.Encoder. It is written by hand because the closure of an evaluation can hold
// tens of thousands of derivations.
func (i *DerivationInfo) AppendWire(b []byte) ([]byte, error) {
	b = append(b, `{"derivationPath":`...)
	b = codec.AppendString(b, i.DerivationPath)
	b = append(b, `,"platform":`...)
	b = codec.AppendString(b, i.Platform)
	b = append(b, `,"requiredSystemFeatures":`...)
	b = codec.AppendStrings(b, i.RequiredSystemFeatures)
	b = append(b, `,"inputDerivations":{`...)
	var few [16]string
	for n, path := range sortedKeys(few[:0], i.InputDerivations) {
		if n > 0 {
			b = append(b, ',')
		}
		b = append(codec.AppendString(b, path), ':')
		b = codec.AppendStrings(b, i.InputDerivations[path])
	}
	b = append(b, `},"inputSources":`...)
	b = codec.AppendStrings(b, i.InputSources)
	b = append(b, `,"outputs":{`...)
	for n, name := range sortedKeys(few[:0], i.Outputs) {
		if n > 0 {
			b = append(b, ',')
		}
		b = append(codec.AppendString(b, name), `:{"path":`...)
		output := i.Outputs[name]
		if output.Path == nil {
			b = append(b, "null"...)
		} else {
			b = codec.AppendString(b, *output.Path)
		}
		b = append(b, `,"isFixed":`...)
		b = strconv.AppendBool(b, output.IsFixed)
		b = append(b, '}')
	}
	return append(b, "}}"...), nil
}

func sortedKeys[V any](keys []string, m Map[string, V]) []string {
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
