// Package term writes to a person's terminal: lines that stay, a region below them that is redrawn, and colour.
//
// It must not know what it shows.
package term

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// Style of a piece of text.
type Style string

// The styles. They are the terminal's own colours, so that they suit its background.
const (
	Plain  Style = ""
	Bold   Style = "1"
	Dim    Style = "2"
	Red    Style = "31"
	Green  Style = "32"
	Yellow Style = "33"
	Blue   Style = "34"
)

// Screen is where a command writes for people.
type Screen struct {
	mu     sync.Mutex
	out    io.Writer
	colour bool
	live   bool
	size   func() (width, height int)
	region int // lines of the region that are on the screen now
}

// New makes a screen of f. It is live (the region is drawn) and coloured when f is a terminal; NO_COLOR and
// TERM=dumb take the colour away, and TERM=dumb the region too.
func New(f *os.File) *Screen {
	terminal := term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
	return &Screen{
		out:    f,
		live:   terminal,
		colour: terminal && os.Getenv("NO_COLOR") == "",
		size: func() (int, int) {
			width, height, err := term.GetSize(int(f.Fd()))
			if err != nil || width <= 0 || height <= 0 {
				return 80, 24
			}
			return width, height
		},
	}
}

// NewPlain makes a screen without region and colour.
func NewPlain(w io.Writer) *Screen {
	return &Screen{out: w, size: func() (int, int) { return 80, 24 }}
}

// Live says whether Region draws anything.
func (s *Screen) Live() bool { return s.live }

// Size gives columns and rows.
func (s *Screen) Size() (width, height int) { return s.size() }

// Paint gives text the style, where the screen has colour.
func (s *Screen) Paint(style Style, text string) string {
	if !s.colour || style == Plain || text == "" {
		return text
	}
	return "\x1b[" + string(style) + "m" + text + "\x1b[0m"
}

// Println writes lines that stay, above the region.
func (s *Screen) Println(lines ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	s.erase(&b)
	for _, line := range lines {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	_, err := io.WriteString(s.out, b.String())
	return err
}

// Region replaces the lines below all others. They are cut to the width of the terminal, and to its height.
func (s *Screen) Region(lines []string) error {
	if !s.live {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	width, height := s.size()
	if len(lines) > height-1 {
		lines = lines[:max(height-1, 0)]
	}
	var b strings.Builder
	s.erase(&b)
	for _, line := range lines {
		b.WriteString(Cut(line, width-1))
		b.WriteByte('\n')
	}
	s.region = len(lines)
	_, err := io.WriteString(s.out, b.String())
	return err
}

// erase must be called with the lock held.
func (s *Screen) erase(b *strings.Builder) {
	if s.region > 0 {
		// To the start of the region's first line, and clear to the end of the screen.
		fmt.Fprintf(b, "\x1b[%dA\r\x1b[J", s.region)
		s.region = 0
	}
}

// Cut shortens text to width columns, counting a rune as one column and escape sequences as none. What is cut off
// is replaced by "…", and open styles are closed.
func Cut(text string, width int) string {
	if width <= 0 {
		return ""
	}
	columns, styled := 0, false
	for i := 0; i < len(text); {
		if n := escape(text[i:]); n > 0 {
			styled = true
			i += n
			continue
		}
		r, n := utf8.DecodeRuneInString(text[i:])
		if !unicode.Is(unicode.Mn, r) {
			columns++
		}
		if columns == width && i+n < len(text) && visible(text[i+n:]) {
			if styled {
				return text[:i] + "…\x1b[0m"
			}
			return text[:i] + "…"
		}
		i += n
	}
	return text
}

func visible(text string) bool {
	for text != "" {
		n := escape(text)
		if n == 0 {
			return true
		}
		text = text[n:]
	}
	return false
}

// escape gives the length of the CSI or OSC sequence that text begins with, 0 when it does not begin with one.
func escape(text string) int {
	if len(text) < 2 || text[0] != 0x1b {
		return 0
	}
	switch text[1] {
	case '[':
		for i := 2; i < len(text); i++ {
			if text[i] >= 0x40 && text[i] <= 0x7e {
				return i + 1
			}
		}
		return len(text)
	case ']':
		for i := 2; i < len(text); i++ {
			if text[i] == 0x07 {
				return i + 1
			}
			if text[i] == 0x1b && i+1 < len(text) && text[i+1] == '\\' {
				return i + 2
			}
		}
		return len(text)
	}
	return 2
}

// Clean makes text from outside safe to show: escape sequences other than colours go, as do control characters
// except tab; invalid UTF-8 is replaced. Without colour the colours go too.
func (s *Screen) Clean(text string) string { return clean(text, s.colour) }

// Strip is Clean without colours.
func Strip(text string) string { return clean(text, false) }

func clean(text string, colour bool) string {
	if strings.IndexFunc(text, func(r rune) bool { return r < 0x20 || r == 0x7f || r == utf8.RuneError || (r >= 0x80 && r < 0xa0) }) < 0 {
		return text
	}
	var b strings.Builder
	styled := false
	for i := 0; i < len(text); {
		if n := escape(text[i:]); n > 0 {
			if colour && text[i+1] == '[' && text[i+n-1] == 'm' {
				b.WriteString(text[i : i+n])
				styled = true
			}
			i += n
			continue
		}
		r, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == '\t', r == '\n':
			b.WriteRune(r)
		case unicode.IsControl(r):
		default:
			b.WriteRune(r) // an invalid byte becomes U+FFFD
		}
		i += n
	}
	if styled {
		b.WriteString("\x1b[0m")
	}
	return b.String()
}
