package report

import (
	"strings"
	"testing"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, log, reason, rest string }{
		{
			"Nix 2.8", "building '/nix/store/x.drv'\nnope\nBuild of x.drv failed: the builder ended with exit code 4.\n" +
				"\x1b[0mbuilder for 'x.drv' failed with exit code 4;\nlast 1 log lines:\n> nope\nFor full logs, run 'nix log x.drv'.",
			"the builder ended with exit code 4.", "nope",
		},
		{
			"Nix 2.34", "nope\nBuild of x.drv failed: the builder was killed by signal 9.\nCannot build 'x.drv'.\n" +
				"Reason: builder failed.\nLast 1 log lines:\n> nope\nFor full logs, run:\n  nix log x.drv",
			"the builder was killed by signal 9.", "nope",
		},
		{
			"a reason that needs Nix's words", "a\nb\nBuild of x.drv failed: its outputs refer to each other in a cycle.\n" +
				"cycle detected in build of 'x.drv' in the references of output 'a' from output 'b'\n       last 2 log lines:\n       > a\n       > b",
			"its outputs refer to each other in a cycle.\ncycle detected in build of 'x.drv' in the references of output 'a' from output 'b'", "a\nb",
		},
		{"the builder says something like it", "Build of y failed: so what\nmore\nBuild of x.drv failed: it took too long.", "it took too long.", "Build of y failed: so what\nmore"},
		{"no reason", "1\n2\n3\n4", "", "2\n3\n4"},
		{"nothing", "", "", ""},
	} {
		reason, rest := explain(strings.Split(test.log, "\n"), 3)
		if reason != test.reason || strings.Join(rest, "\n") != test.rest {
			t.Errorf("%s: got %q and %q", test.name, reason, rest)
		}
	}
}

func TestBrief(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"\x1b[31;1merror:\x1b[0m no\n\n  at x": "no",
		"no":                                   "no",
		"":                                     "",
	} {
		if got := brief(text); got != want {
			t.Errorf("%q: got %q", text, got)
		}
	}
}

func TestAttrPath(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		path []string
		want string
	}{
		{nil, "(root)"},
		{[]string{"a", "b-c", "_d'"}, "a.b-c._d'"},
		{[]string{"a.b", "1", ""}, `"a.b"."1".""`},
		{[]string{"q\"\\", "${x}", "n\nr\rt\t", "ü"}, `"q\"\\"."\${x}"."n\nr\rt\t"."ü"`},
	} {
		if got := AttrPath(test.path); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
}
