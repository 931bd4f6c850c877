package daemon

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"
)

// encode runs f on a writer and returns what it wrote.
func encode(f func(w *writer)) []byte {
	var b bytes.Buffer
	w := newWriter(&b)
	f(w)
	_ = w.flush()
	return b.Bytes()
}

// FuzzNar checks that the copier copies exactly what it takes, and takes nothing past the end of a NAR.
func FuzzNar(f *testing.F) {
	nar := encode(func(w *writer) {
		for _, s := range []string{
			"nix-archive-1", "(", "type", "directory",
			"entry", "(", "name", "a\xff", "node", "(", "type", "symlink", "target", "b", ")", ")",
			"entry", "(", "name", "b", "node", "(", "type", "regular", "executable", "", "contents", "hello", ")", ")", ")",
		} {
			w.string(s)
		}
	})
	f.Add(nar)
	f.Add(append(nar, "more"...))
	f.Add(nar[:len(nar)-9])
	f.Add(encode(func(w *writer) { w.uint(msgError); w.remoteError(&RemoteError{Msg: "no", Traces: []string{"a"}}) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		r := newReader(bytes.NewReader(b))
		copyNar(&out, r)
		if r.err != nil {
			return
		}
		rest, err := io.ReadAll(r.br)
		if err != nil || !bytes.Equal(append(out.Bytes(), rest...), b) {
			t.Errorf("%q becomes %q and %q is left", b, out.Bytes(), rest)
		}
		again := newReader(&out)
		if copyNar(io.Discard, again); again.err != nil {
			t.Errorf("the copy of %q is refused: %v", b, again.err)
		}
	})
}

// FuzzReply gives every decoder bytes of a hostile daemon.
func FuzzReply(f *testing.F) {
	p := "/nix/store/" + strings.Repeat("1", 32) + "-x"
	f.Add(encode(func(w *writer) {
		w.event(msgStartActivity, Event{Kind: EventStart, ID: 1, Text: "t", Fields: []Field{{Int: 1}, {IsText: true, Text: "f"}}})
		w.uint(msgError)
		w.remoteError(&RemoteError{Msg: "m", Traces: []string{"t"}})
	}))
	f.Add(encode(func(w *writer) { w.pathInfo(&PathInfo{NarHash: make([]byte, 32), References: []string{p}}) }))
	f.Add(encode(func(w *writer) {
		w.uint(1)
		w.string("")
		for range 4 {
			w.uint(0)
		}
		w.stringMap(map[string]string{"sha256:00!out": `{"outPath":"` + p[11:] + `"}`})
	}))
	f.Add(encode(func(w *writer) {
		w.basicDerivation(&BasicDerivation{Inputs: []string{p}, Env: map[string]string{"a": "b"}})
	}))
	f.Add(encode(func(w *writer) { w.clientOptions(&clientOptions{overrides: map[string]string{"a": "b"}}) }))
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	r := newReader(nil)
	w := newWriter(nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, protocol := range []proto{{version: versionMin}, {version: versionMax}, {version: versionMax, features: knownFeatures}} {
			for _, decode := range []func(r *reader){
				func(r *reader) { _ = r.stderr(func(Event) {}) },
				func(r *reader) { r.pathInfo(p) },
				func(r *reader) { r.buildResult(protocol) },
				func(r *reader) { r.basicDerivation() },
				func(r *reader) { r.clientOptions() },
				func(r *reader) { r.derivedPaths() },
				func(r *reader) { r.daemonInfo(protocol) },
				func(r *reader) { _, _ = greet(r, &writer{bufio.NewWriterSize(io.Discard, 16)}) },
			} {
				r.br.Reset(bytes.NewReader(b))
				r.err = nil
				decode(r)
			}
			for o := range forms {
				form, _ := protocol.form(o)
				for _, s := range []string{strings.TrimSuffix(form.args, "f"), form.res} {
					var out bytes.Buffer
					src := bytes.NewReader(b)
					w.bw.Reset(&out)
					r.br.Reset(src)
					r.err = nil
					relay(w, r, s)
					_ = w.flush()
					if taken := len(b) - src.Len() - r.br.Buffered(); r.err == nil && !bytes.Equal(out.Bytes(), b[:taken]) {
						t.Fatalf("%v by %q: %q becomes %q", o, s, b[:taken], out.Bytes())
					}
				}
			}
		}
	})
}

// TestFormsMatchTheCodec: what the client's encoders write is what the proxy's forms describe, in every version.
func TestFormsMatchTheCodec(t *testing.T) {
	p := "/nix/store/" + strings.Repeat("1", 32) + "-x"
	info := &PathInfo{NarHash: make([]byte, 32), References: []string{p, p}, Signatures: []string{"a:b"}, ContentAddress: "text:sha256:0"}
	result := func(pr proto) []byte {
		return encode(func(w *writer) {
			w.uint(3)
			w.string("failed")
			w.uint(1)
			w.uint(0)
			w.uint(10)
			w.uint(20)
			if pr.version >= versionCPU {
				w.uint(1)
				w.uint(5)
				w.uint(0)
			}
			if pr.has(featureRealisation) {
				w.uint(1)
				w.string("out")
				w.string(p)
				w.strings([]string{"sig"})
			} else {
				w.stringMap(map[string]string{"sha256:00!out": `{"outPath":"` + p[11:] + `"}`})
			}
		})
	}
	for _, pr := range []proto{{version: versionMin}, {version: versionResult}, {version: versionCPU}, {version: versionMax, features: knownFeatures}} {
		r := newReader(bytes.NewReader(result(pr)))
		if b := r.buildResult(pr); r.err != nil || b.Outputs["out"] != p || b.ErrorMsg != "failed" || b.StopTime != 20 || r.br.Buffered() != 0 {
			t.Errorf("%v: %+v, %v", pr, b, r.err)
		}
		for what, test := range map[string]struct {
			form string
			b    []byte
		}{
			"info": {formInfo, encode(func(w *writer) { w.pathInfo(info) })},
			"derivation": {formDerivation, encode(func(w *writer) {
				w.basicDerivation(&BasicDerivation{Outputs: map[string]DerivationOutput{"out": {Path: p}}, Inputs: []string{p}, Args: []string{"a"}, Env: map[string]string{"b": "c"}})
			})},
			"options": {forms[opSetOptions].args, encode(func(w *writer) { w.clientOptions(&clientOptions{overrides: map[string]string{"a": "b"}}) })},
			"result":  {pr.formResult(), result(pr)},
		} {
			var out bytes.Buffer
			w, r := newWriter(&out), newReader(bytes.NewReader(test.b))
			relay(w, r, test.form)
			_ = w.flush()
			if r.err != nil || !bytes.Equal(out.Bytes(), test.b) || r.br.Buffered() != 0 {
				t.Errorf("%v: %s: %v, %d bytes left", pr, what, r.err, r.br.Buffered())
			}
		}
	}
}

// TestLyingLengthTakesNoMemory: a peer that announces much and sends little costs what it sends.
func TestLyingLengthTakesNoMemory(t *testing.T) {
	lie := encode(func(w *writer) { w.uint(maxMessage - elementCost) })
	got := testing.AllocsPerRun(1, func() {
		r := newReader(bytes.NewReader(lie))
		r.bytes()
		if r.err == nil {
			t.Error("it is taken")
		}
	})
	if got > 20 {
		t.Errorf("%v allocations", got)
	}
	r := newReader(bytes.NewReader(encode(func(w *writer) { w.uint(1 << 62) })))
	if r.strings(); r.err == nil {
		t.Error("a list of 2^62 elements is taken")
	}
	r = newReader(io.MultiReader(bytes.NewReader(encode(func(w *writer) { w.uint(1 << 20) })), endless{}))
	if r.each(func() { r.string() }); r.err == nil {
		t.Error("a list without end is taken")
	}
}

// endless is an endless sequence of texts of 64 KiB.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	n := 0
	for len(b)-n >= 8 {
		n += copy(b[n:], []byte{0, 0, 1, 0, 0, 0, 0, 0})
	}
	return n, nil
}
