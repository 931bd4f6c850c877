package agentapi_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/codec"
)

// fuzzTypes are what comes from outside.
var fuzzTypes = []string{
	"Frame AgentPayload", "Frame ServicePayload", "Frame LogMessage", "Frame ServiceInfo", "[EvaluateEvent]", "[BuildEvent]",
	"TaskStatus", "Maybe (UUID, DerivationStatus)", "CreateAgentSession", "StartInfo", "Secret", "Condition", "Mountable",
	"NixCache", "CachixCache", "StateLockAcquireRequest", "StateLockAcquireResponse", "Text",
}

// FuzzDocuments: no input breaks a decoder, what is accepted is JSON for encoding/json too, and what was
// decoded encodes to a document that decodes to the same.
func FuzzDocuments(f *testing.F) {
	for _, v := range vectors(f) {
		for i, name := range fuzzTypes {
			if name == v.typ {
				f.Add(uint8(i), read(f, v.file)) //nolint:gosec // few types
			}
		}
	}
	for _, s := range []string{
		`{"tag":"Msg","n":1e3,"p":{"contents":[{"tag":"Msg","i":18446744073709551615,"ms":0,"level":-1,"msg":"\ud83d\ude00\u0000"}],"tag":"LogEntries"}}`,
		`{"n":-9223372036854775808,"tag":"Ack"}`, `{"tag":"Exception","message":"\ud800"}`,
	} {
		f.Add(uint8(2), []byte(s))
	}
	f.Fuzz(func(t *testing.T, kind uint8, in []byte) {
		typ := types[fuzzTypes[int(kind)%len(fuzzTypes)]]
		x := reflect.New(typ)
		if codec.Unmarshal(in, x.Interface()) != nil {
			return
		}
		if !json.Valid(in) {
			t.Fatalf("accepted what is no JSON: %q", in)
		}
		out, err := codec.Marshal(x.Interface())
		if err != nil {
			t.Fatalf("decoded, but does not encode: %v", err)
		}
		y := reflect.New(typ)
		if err := codec.Unmarshal(out, y.Interface()); err != nil {
			t.Fatalf("%s does not decode: %v", out, err)
		}
		again, err := codec.Marshal(y.Interface())
		if err != nil || !bytes.Equal(out, again) {
			t.Fatalf("%v\n%s\n%s", err, out, again)
		}
	})
}

// TestHostileDocuments are refused without harm.
func TestHostileDocuments(t *testing.T) {
	t.Parallel()
	deep := func(open string, n int) []byte { return bytes.Repeat([]byte(open), n) }
	for name, in := range map[string][]byte{
		"deep arrays":        deep("[", 1<<20),
		"deep objects":       deep(`{"a":`, 1<<20),
		"deep unknown value": append([]byte(`{"tag":"Ping","x":`), deep("[", 1<<20)...),
		"deep conditions":    deep(`{"or":[`, 1<<20),
		"huge number":        append([]byte(`{"tag":"Ack","n":`), append(bytes.Repeat([]byte("9"), 1<<20), '}')...),
		"huge exponent":      []byte(`{"tag":"Ack","n":1e99999999999999999999}`),
		"large exponent":     []byte(`{"tag":"Ack","n":0e1025}`),
		"tiny":               []byte(`{"tag":"Ack","n":1e-1}`),
		"out of range":       []byte(`{"tag":"Ack","n":9223372036854775808}`),
		"unpaired surrogate": []byte(`{"tag":"Exception","message":"\ud800 \udc00"}`),
		"zero":               []byte("\x00"),
		"empty":              nil,
		"unfinished":         []byte(`{"tag":"Ack","n":1`),
		"twice":              []byte(`{"tag":"Ack","n":1}{}`),
		"raw control":        []byte("{\"tag\":\"Exception\",\"message\":\"\n\"}"),
		"leading zero":       []byte(`{"tag":"Ack","n":01}`),
		"two constructors":   []byte(`{"tag":"Ack"}`),
	} {
		for _, typ := range []any{&agentapi.Frame[agentapi.AgentPayload]{}, &agentapi.Frame[agentapi.LogMessage]{}} {
			if err := codec.Unmarshal(in, typ); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
	}
	if err := codec.Unmarshal(deep(`{"or":[`, 1<<20), reflect.New(types["Condition"]).Interface()); err == nil {
		t.Error("deep conditions: accepted")
	}
}
