package tasklog

import (
	"iter"
	"strings"
	"unicode/utf8"

	"hercules/internal/nix/daemon"
	"hercules/internal/wire/agentapi"
)

// overhead is what an entry takes in memory besides its text, roughly.
const overhead = 160

func notice(text string) daemon.Event {
	return daemon.Event{Kind: daemon.EventMessage, Level: daemon.Error, Text: text}
}

// visible reports whether a reader of the log sees the event: protocol specification 6.4, filter 3.
func visible(e daemon.Event) bool {
	switch e.Kind {
	case daemon.EventMessage, daemon.EventStart:
		return e.Text != ""
	case daemon.EventResult:
		return e.Type == daemon.ResBuildLogLine
	}
	return false
}

func size(e daemon.Event) int {
	n := overhead + len(e.Text)
	for i := range e.Fields {
		n += len(e.Fields[i].Text)
	}
	return n
}

// entrySize is what an entry takes in memory, roughly.
func entrySize(e *agentapi.LogEntry) int {
	n := overhead + len(e.Text)
	for i := range e.Fields {
		n += len(e.Fields[i].Text)
	}
	return n
}

func convert(e daemon.Event, i, ms uint64) agentapi.LogEntry {
	out := agentapi.LogEntry{I: i, MS: ms}
	switch e.Kind {
	case daemon.EventStart:
		out.Kind = agentapi.LogStart
		out.Level, out.Text = int64(e.Level), clean(e.Text)
		out.Act, out.Parent, out.Type = e.ID, e.Parent, e.Type
	case daemon.EventStop:
		out.Kind = agentapi.LogStop
		out.Act = e.ID
		return out
	case daemon.EventResult:
		out.Kind = agentapi.LogResult
		out.Act, out.Type = e.ID, e.Type
	default:
		out.Kind = agentapi.LogMsg
		out.Level, out.Text = int64(e.Level), clean(e.Text)
		return out
	}
	out.Fields = make([]agentapi.LogField, len(e.Fields))
	for j, f := range e.Fields {
		out.Fields[j] = agentapi.LogField{IsText: f.IsText, Int: f.Int, Text: clean(f.Text)}
	}
	return out
}

// clean makes a text valid UTF-8; a builder can print anything.
func clean(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// split cuts an event with too much text into several. Lines of build logs and messages are continued in further ones;
// of anything else, whose texts are names and never that long, the texts are cut off.
func split(e daemon.Event) iter.Seq[daemon.Event] {
	return func(yield func(daemon.Event) bool) {
		switch {
		case e.Kind == daemon.EventMessage:
			for part := range pieces(e.Text) {
				e.Text = part
				if !yield(e) {
					return
				}
			}
		case e.Kind == daemon.EventResult && e.Type == daemon.ResBuildLogLine && len(e.Fields) == 1:
			for part := range pieces(e.Fields[0].Text) {
				e.Fields = []daemon.Field{{IsText: true, Text: part}}
				if !yield(e) {
					return
				}
			}
		default:
			const limit = 4096
			if len(e.Fields) > 64 {
				e.Fields = e.Fields[:64]
			}
			fields := make([]daemon.Field, len(e.Fields))
			for i, f := range e.Fields {
				fields[i] = f
				fields[i].Text = strings.Clone(f.Text[:min(limit, len(f.Text))])
			}
			e.Fields = fields
			e.Text = strings.Clone(e.Text[:min(limit, len(e.Text))])
			yield(e)
		}
	}
}

// pieces cuts a text into parts of at most maxText bytes, not inside a character. The parts are copies: one of them
// in memory does not keep the rest.
func pieces(s string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for len(s) > maxText {
			n := maxText
			for n > maxText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
				n--
			}
			if !yield(strings.Clone(s[:n])) {
				return
			}
			s = s[n:]
		}
		yield(strings.Clone(s))
	}
}

// tailEntry is an entry that has no number yet.
type tailEntry struct {
	e  daemon.Event
	ms uint64
}

// ring keeps the last maxTail entries, of maxTailBytes at most.
type ring struct {
	items   []tailEntry
	first   int // of items, the oldest
	n       int
	bytes   int
	dropped uint64
}

func (r *ring) len() int { return r.n }

func (r *ring) push(t tailEntry) {
	r.bytes += size(t.e)
	for r.n == maxTail || r.n > 0 && r.bytes > maxTailBytes {
		r.bytes -= size(r.items[r.first].e)
		r.items[r.first] = tailEntry{}
		r.first = (r.first + 1) % maxTail
		r.n--
		r.dropped++
	}
	at := (r.first + r.n) % maxTail
	if at == len(r.items) {
		r.items = append(r.items, t)
	} else {
		r.items[at] = t
	}
	r.n++
}

func (r *ring) all() iter.Seq[tailEntry] {
	return func(yield func(tailEntry) bool) {
		for i := range r.n {
			if !yield(r.items[(r.first+i)%maxTail]) {
				return
			}
		}
	}
}
