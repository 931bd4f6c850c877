package agentapi_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/formats"
	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/codec"
	"hercules/internal/wire/publicapi"
)

// Documents of unused endpoints, which only the tests know.
type (
	task struct {
		Typ string      `json:"typ"`
		ID  agentapi.ID `json:"id"`
	}
	createAgentSessionV1 struct {
		Hostname      string                `json:"hostname"`
		AgentVersion  string                `json:"agentVersion"`
		NixVersion    string                `json:"nixVersion"`
		Architectures agentapi.List[string] `json:"architectures"`
	}
)

// types maps the names in INDEX.tsv to Go types.
var types = map[string]reflect.Type{
	"AgentInfo":                      reflect.TypeFor[agentapi.AgentInfo](),
	"StartInfo":                      reflect.TypeFor[agentapi.StartInfo](),
	"Hello":                          reflect.TypeFor[agentapi.Hello](),
	"ServiceInfo":                    reflect.TypeFor[agentapi.ServiceInfo](),
	"CreateAgentSession":             reflect.TypeFor[agentapi.CreateAgentSession](),
	"CreateAgentSessionV1":           reflect.TypeFor[createAgentSessionV1](),
	"Text":                           reflect.TypeFor[string](),
	"BuildTask":                      reflect.TypeFor[agentapi.BuildTask](),
	"EffectTask":                     reflect.TypeFor[agentapi.EffectTask](),
	"EvaluateTask":                   reflect.TypeFor[agentapi.EvaluateTask](),
	"Selector":                       reflect.TypeFor[agentapi.Selector](),
	"ImmutableInput":                 reflect.TypeFor[agentapi.ImmutableInput](),
	"ImmutableGitInput":              reflect.TypeFor[agentapi.ImmutableGitInput](),
	"Credential":                     reflect.TypeFor[agentapi.Credential](),
	"NixPathElement":                 reflect.TypeFor[agentapi.NixPathElement](),
	"SubPathOf":                      reflect.TypeFor[agentapi.SubPathOf](),
	"Task":                           reflect.TypeFor[task](),
	"Maybe Task":                     reflect.TypeFor[*task](),
	"TaskStatus":                     reflect.TypeFor[agentapi.TaskStatus](),
	"DerivationStatus":               reflect.TypeFor[agentapi.DerivationStatus](),
	"Maybe (UUID, DerivationStatus)": reflect.TypeFor[*agentapi.EvalBuild](),
	"AgentPayload":                   reflect.TypeFor[agentapi.AgentPayload](),
	"ServicePayload":                 reflect.TypeFor[agentapi.ServicePayload](),
	"EvaluateEvent":                  reflect.TypeFor[agentapi.EvaluateEvent](),
	"[EvaluateEvent]":                reflect.TypeFor[[]agentapi.EvaluateEvent](),
	"InputDeclaration":               reflect.TypeFor[agentapi.InputDeclaration](),
	"SecretRef":                      reflect.TypeFor[agentapi.SecretRef](),
	"BuildEvent":                     reflect.TypeFor[agentapi.BuildEvent](),
	"[BuildEvent]":                   reflect.TypeFor[[]agentapi.BuildEvent](),
	"OutputInfo":                     reflect.TypeFor[agentapi.OutputInfo](),
	"LogEntry":                       reflect.TypeFor[agentapi.LogEntry](),
	"Field":                          reflect.TypeFor[agentapi.LogField](),
	"LogHello":                       reflect.TypeFor[agentapi.LogHello](),
	"LogMessage":                     reflect.TypeFor[agentapi.LogMessage](),
	"Frame AgentPayload":             reflect.TypeFor[agentapi.Frame[agentapi.AgentPayload]](),
	"Frame ServicePayload":           reflect.TypeFor[agentapi.Frame[agentapi.ServicePayload]](),
	"Frame ServiceInfo":              reflect.TypeFor[agentapi.Frame[agentapi.ServiceInfo]](),
	"Frame LogMessage":               reflect.TypeFor[agentapi.Frame[agentapi.LogMessage]](),
	"Secret":                         reflect.TypeFor[formats.Secret](),
	"Condition":                      reflect.TypeFor[formats.Condition](),
	"Mountable":                      reflect.TypeFor[formats.Mountable](),
	"NixCache":                       reflect.TypeFor[formats.NixCache](),
	"CachixCache":                    reflect.TypeFor[formats.CachixCache](),
	"StateLockAcquireRequest":        reflect.TypeFor[publicapi.StateLockAcquireRequest](),
	"StateLockAcquireResponse":       reflect.TypeFor[publicapi.StateLockAcquireResponse](),
	"StateLockAcquiredResponse":      reflect.TypeFor[publicapi.StateLockAcquiredResponse](),
	"StateLockUpdateRequest":         reflect.TypeFor[publicapi.StateLockUpdateRequest](),
}

type vector struct{ file, typ, mode string }

func vectors(t testing.TB) (list []vector) {
	t.Helper()
	for line := range strings.Lines(string(read(t, "INDEX.tsv"))) {
		if f := strings.Split(strings.TrimRight(line, "\n"), "\t"); len(f) >= 3 && !strings.HasPrefix(line, "#") {
			list = append(list, vector{f[0], f[1], f[2]})
		}
	}
	return list
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "vectors", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// parsed is a document as encoding/json sees it, with exact numbers.
func parsed(t *testing.T, b []byte) (v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, b)
	}
	return v
}

func TestVectors(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, v := range vectors(t) {
		seen[v.file] = true
		typ, ok := types[v.typ]
		if !ok {
			t.Errorf("%s: no Go type for %s", v.file, v.typ)
			continue
		}
		t.Run(v.file, func(t *testing.T) {
			t.Parallel()
			in := read(t, v.file)
			x := reflect.New(typ)
			err := codec.Unmarshal(in, x.Interface())
			if v.mode == "reject" {
				if err == nil {
					t.Fatalf("decoded to %+v", x.Elem())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := in
			if v.mode == "lenient" {
				want = read(t, strings.Replace(v.file, ".in.json", ".out.json", 1))
			}
			got, err := codec.Marshal(x.Interface())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(parsed(t, want), parsed(t, got)); d != "" {
				t.Errorf("encoded (-want +got):\n%s", d)
			}

			if typ.PkgPath() == reflect.TypeFor[agentapi.Hello]().PkgPath() {
				if got, err = json.Marshal(x.Interface()); err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(parsed(t, want), parsed(t, got)); d != "" {
					t.Errorf("encoded by encoding/json (-want +got):\n%s", d)
				}
			}
		})
	}
	files := os.DirFS("testdata/vectors")
	for _, pattern := range []string{"*.json", "*/*.json"} {
		names, err := fs.Glob(files, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !seen[name] && !strings.HasSuffix(name, ".out.json") {
				t.Errorf("%s is not in the index", name)
			}
		}
	}
	if len(seen) < 150 {
		t.Errorf("only %d vectors", len(seen))
	}
}
