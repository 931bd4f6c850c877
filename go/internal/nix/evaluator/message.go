package evaluator

import (
	"bytes"
	"encoding/json"
	"strconv"

	"hercules/internal/nix/daemon"
)

var messagePrefix = []byte("@nix ")

// ParseMessage reads a line of Nix's internal-json log (logging.cc). Lines of other programs, which share standard
// error, are not messages.
func ParseMessage(line []byte) (daemon.Event, bool) {
	body, ok := bytes.CutPrefix(line, messagePrefix)
	if !ok {
		return daemon.Event{}, false
	}
	var m struct {
		Action string            `json:"action"`
		Level  int               `json:"level"`
		Msg    string            `json:"msg"`
		Text   string            `json:"text"`
		ID     uint64            `json:"id"`
		Parent uint64            `json:"parent"`
		Type   uint64            `json:"type"`
		Fields []json.RawMessage `json:"fields"`
	}
	if json.Unmarshal(body, &m) != nil {
		return daemon.Event{}, false
	}
	e := daemon.Event{Level: daemon.Verbosity(m.Level), ID: m.ID, Parent: m.Parent, Type: m.Type}
	switch m.Action {
	case "msg":
		return daemon.Event{Kind: daemon.EventMessage, Level: e.Level, Text: m.Msg}, true
	case "start":
		e.Kind, e.Text = daemon.EventStart, m.Text
	case "stop":
		return daemon.Event{Kind: daemon.EventStop, ID: m.ID}, true
	case "result":
		e.Kind, e.Level = daemon.EventResult, 0
	default:
		return daemon.Event{}, false
	}
	for _, f := range m.Fields {
		if n, err := strconv.ParseUint(string(f), 10, 64); err == nil {
			e.Fields = append(e.Fields, daemon.Field{Int: n})
			continue
		}
		var s string
		if json.Unmarshal(f, &s) != nil {
			return daemon.Event{}, false
		}
		e.Fields = append(e.Fields, daemon.Field{IsText: true, Text: s})
	}
	return e, true
}

const (
	// maxLine bounds what a user's trace may cost; maxResult what a result may, for example the names of a
	// very large attribute set.
	maxLine   = 1 << 20
	maxResult = 256 << 20
)

// lineBuffer cuts a stream into lines and leaves out those that are too long.
type lineBuffer struct {
	keep []byte // a line that has this near its start is a result
	buf  []byte
	skip int // bytes of the line that is being left out
}

// feed calls line for each complete line, without the newline. dropped is the length of one that was left out.
func (l *lineBuffer) feed(b []byte, line func(b []byte, dropped int)) {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		part := b
		if i >= 0 {
			part = b[:i]
		}
		switch {
		case l.skip > 0:
			l.skip += len(part)
		case len(l.buf)+len(part) > l.limit():
			l.skip = len(l.buf) + len(part)
			l.buf = nil
		default:
			l.buf = append(l.buf, part...)
		}
		if i < 0 {
			return
		}
		b = b[i+1:]
		line(l.buf, l.skip)
		l.skip = 0
		if cap(l.buf) > maxLine {
			l.buf = nil
		}
		l.buf = l.buf[:0]
	}
}

func (l *lineBuffer) limit() int {
	if len(l.buf) > 0 && bytes.Contains(l.buf[:min(len(l.buf), 200)], l.keep) {
		return maxResult
	}
	return maxLine
}
