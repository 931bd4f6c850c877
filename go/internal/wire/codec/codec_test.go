package codec_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/wire/codec"
)

// TestTypesWithoutEncoding: a type that has no encoding is found when it is first used, not when a certain
// value comes along.
func TestTypesWithoutEncoding(t *testing.T) {
	t.Parallel()
	type half struct {
		A string `json:"a"`
		B string
	}
	type noPointer struct{ A string }
	type omitted struct {
		A string `json:"a,omitempty"`
	}
	type empty struct{}
	type inline struct {
		A *string `sum:",inline"`
	}
	for want, v := range map[string]any{
		"neither a record nor a sum": &half{}, "is no pointer": &noPointer{}, "must not be omitted": &omitted{},
		"is empty": &empty{}, "is no record": &inline{}, "float64 has no encoding": new(float64), "int has no encoding": new(int),
		"no strings": &map[int64]string{}, "interface {} has no encoding": new(any),
	} {
		func() {
			defer func() {
				if got, _ := recover().(string); !strings.Contains(got, want) {
					t.Errorf("%T: panic %q, want %q", v, got, want)
				}
			}()
			codec.Check(reflect.TypeOf(v).Elem())
		}()
	}
}

// tree contains itself.
type tree struct {
	Name     string          `json:"name"`
	Children []tree          `json:"children"`
	Parent   *tree           `json:"parent"`
	Extra    json.RawMessage `json:"extra"`
}

func TestRecursiveTypeFromManyGoroutines(t *testing.T) {
	t.Parallel()
	const doc = `{"name":"a","children":[{"name":"b","children":[],"parent":null,"extra":null}],"parent":{"name":"c","children":[],"parent":null,"extra":[1.50]},"extra":{"x": 1}}`
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var x tree
			if err := codec.Unmarshal([]byte(doc), &x); err != nil {
				t.Error(err)
				return
			}
			got, err := codec.Marshal(x)
			if d := cmp.Diff(doc, string(got)); d != "" || err != nil {
				t.Error(err, d)
			}
		})
	}
	wg.Wait()
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	t.Parallel()
	type sum struct{ A, B *string }
	b, err := codec.Append([]byte("head "), &sum{})
	if err == nil || string(b) != "head " {
		t.Errorf("%q, %v", b, err)
	}
	text := "x"
	if b, err = codec.Append(b, &sum{B: &text}); err != nil || string(b) != `head {"tag":"B","contents":"x"}` {
		t.Errorf("%q, %v", b, err)
	}
	if b, err = codec.Marshal((*sum)(nil)); err != nil || string(b) != "null" {
		t.Errorf("%q, %v", b, err)
	}
}
