package term

import (
	"bytes"
	"testing"
)

func TestCut(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text  string
		width int
		want  string
	}{
		{"", 5, ""},
		{"hello", 5, "hello"},
		{"hello", 4, "hel…"},
		{"soufflé is", 7, "souffl…"},
		{"\x1b[31mhello\x1b[0m", 5, "\x1b[31mhello\x1b[0m"},
		{"\x1b[31mhello\x1b[0m", 4, "\x1b[31mhel…\x1b[0m"},
		{"hello", 0, ""},
	} {
		if got := Cut(test.text, test.width); got != test.want {
			t.Errorf("Cut(%q, %d) = %q, want %q", test.text, test.width, got, test.want)
		}
	}
}

func TestCleanKeepsColourAndNothingElse(t *testing.T) {
	t.Parallel()
	colour := &Screen{colour: true}
	for _, test := range []struct{ text, coloured, plain string }{
		{"plain", "plain", "plain"},
		{"\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m", "red"},
		{"\x1b[2Jcleared\x1b[H", "cleared", "cleared"},
		{"title\x1b]0;evil\x07!", "title!", "title!"},
		{"bell\a and \r return", "bell and  return", "bell and  return"},
		{"bad \xff byte", "bad \ufffd byte", "bad \ufffd byte"},
		{"c1 \u009b31m", "c1 31m", "c1 31m"},
		{"cut \x1b", "cut ", "cut "},
	} {
		if got := colour.Clean(test.text); got != test.coloured {
			t.Errorf("Clean(%q) = %q, want %q", test.text, got, test.coloured)
		}
		if got := Strip(test.text); got != test.plain {
			t.Errorf("Strip(%q) = %q, want %q", test.text, got, test.plain)
		}
	}
}

func TestRegionIsRedrawnBelowTheLinesThatStay(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s := &Screen{out: &out, live: true, size: func() (int, int) { return 10, 3 }}
	for _, err := range []error{
		s.Region([]string{"one", "a line that is too long", "never shown"}),
		s.Println("stays"),
		s.Region([]string{"two"}),
		s.Region(nil),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := "one\na line t…\n\x1b[2A\r\x1b[Jstays\ntwo\n\x1b[1A\r\x1b[J"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}

func FuzzClean(f *testing.F) {
	f.Add("\x1b[31mred\x1b[0m")
	f.Add("\x1b]0;t\x1b\\x")
	f.Add("\x1b")
	f.Fuzz(func(t *testing.T, text string) {
		if bytes.ContainsAny([]byte(Strip(text)), "\x1b\x07\r\x00") {
			t.Errorf("control characters left in %q", Strip(text))
		}
		Cut(text, 7)
	})
}
