package logging

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// handler writes "message key=value …", one line whatever the values hold.
type handler struct {
	mu    *sync.Mutex
	w     io.Writer
	level slog.Leveler
	style Style
	group string // "a.b." of the groups that are open
	attrs string // " key=value …" of WithAttrs, already formatted
}

func newHandler(w io.Writer, level slog.Leveler, style Style) *handler {
	return &handler{mu: new(sync.Mutex), w: w, level: level, style: style}
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.group += name + "."
	return &c
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	b := []byte(h.attrs)
	for _, a := range attrs {
		b = appendAttr(b, h.group, a)
	}
	c.attrs = string(b)
	return &c
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	row := rowOf(r.Level)
	b := make([]byte, 0, 256)
	switch h.style {
	case Journal:
		b = append(b, '<', row.priority, '>')
	case Terminal:
		b = r.Time.AppendFormat(b, time.TimeOnly)
		b = append(b, " \x1b["+row.color+"m"+row.short+"\x1b[0m "...)
	default:
		b = r.Time.UTC().AppendFormat(b, time.RFC3339)
		b = append(b, ' ')
		b = append(b, row.short...)
		b = append(b, ' ')
	}
	b = append(b, oneLine(Redact(r.Message))...)
	b = append(b, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, h.group, a)
		return true
	})
	b = append(b, '\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(b)
	return err
}

func appendAttr(b []byte, group string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if a.Key == "" && v.Kind() != slog.KindGroup {
		return b
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, m := range v.Group() {
			b = appendAttr(b, group, m)
		}
		return b
	}
	b = append(b, ' ')
	b = append(b, oneLine(group)...)
	b = append(b, oneLine(a.Key)...)
	b = append(b, '=')
	switch v.Kind() {
	case slog.KindTime:
		return v.Time().AppendFormat(b, time.RFC3339Nano)
	case slog.KindDuration:
		return append(b, v.Duration().Round(time.Millisecond).String()...)
	default:
		text := Redact(v.String())
		if needsQuotes(text) {
			return strconv.AppendQuote(b, text)
		}
		return append(b, text...)
	}
}

func needsQuotes(s string) bool {
	return s == "" || strings.ContainsFunc(s, func(r rune) bool {
		return r == ' ' || r == '"' || r == '=' || r == utf8.RuneError || !unicode.IsPrint(r)
	})
}

// oneLine keeps what is written to the log by others from looking like a line of ours or steering a terminal.
func oneLine(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}
