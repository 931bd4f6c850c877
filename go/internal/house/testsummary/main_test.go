package main

import (
	"strings"
	"testing"
	"time"
)

func TestSummarize(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   string
		ok   bool
		want []string
		not  []string
	}{
		"good": {
			`{"Action":"run","Package":"a","Test":"T"}
{"Action":"output","Package":"a","Test":"T","Output":"noise\n"}
{"Action":"pass","Package":"a","Test":"T"}
{"Action":"output","Package":"a","Test":"U","Output":"    x_test.go:5: SKIP: no nix\n"}
{"Action":"skip","Package":"a","Test":"U"}
{"Action":"pass","Package":"a","Elapsed":1}
{"Action":"skip","Package":"b"}`, true,
			[]string{"ok    a ", "SKIP: no nix (1×)", "test: ok: 1 packages, 1 tests passed, 0 failed, 1 skipped"},
			[]string{"noise"},
		},
		"failed": {
			`{"Action":"output","Package":"a","Test":"T","Output":"what went wrong\n"}
{"Action":"fail","Package":"a","Test":"T"}
{"Action":"fail","Package":"a"}`, false,
			[]string{"what went wrong", "FAIL  a ", "test: FAILED in a: 1 packages, 0 tests passed, 1 failed"},
			nil,
		},
		"died in the middle": {
			`{"Action":"output","Package":"a","Test":"T","Output":"panic: x\n"}
{"Action":"fail","Package":"a"}`, false,
			[]string{"panic: x", "FAILED in a"},
			nil,
		},
		"does not build": {
			`{"ImportPath":"a [a.test]","Action":"build-output","Output":"a.go:1: undefined: x\n"}
{"ImportPath":"a [a.test]","Action":"build-fail"}
{"Action":"fail","Package":"a","FailedBuild":"a [a.test]"}`, false,
			[]string{"undefined: x", "FAILED in a"},
			nil,
		},
		"nothing":          {``, false, []string{"FAILED: no package was tested"}, nil},
		"not of go test":   {"go: cannot find main module\n", false, []string{"go: cannot find main module", "FAILED"}, nil},
		"a cut last line ": {`{"Action":"pass","Pack`, false, []string{"FAILED"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			if got := summarize(strings.NewReader(c.in), &out, time.Now()); got != c.ok {
				t.Errorf("got %v, want %v", got, c.ok)
			}
			for _, w := range c.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("no %q in:\n%s", w, out.String())
				}
			}
			for _, w := range c.not {
				if strings.Contains(out.String(), w) {
					t.Errorf("%q in:\n%s", w, out.String())
				}
			}
		})
	}
}
