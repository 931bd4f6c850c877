package daemon

import (
	"strings"
)

// A RemoteError is an error that the daemon reported about an operation. Texts may have ANSI colours.
type RemoteError struct {
	Level Verbosity
	Msg   string
	// Traces say what Nix was doing, the innermost first.
	Traces []string
}

// Error is the message without the traces.
func (e *RemoteError) Error() string { return e.Msg }

// readError reads an error as it is since 1.26 (serialise.cc, readError). Positions are never sent.
func (r *reader) remoteError() *RemoteError {
	kind := r.string()
	if r.err == nil && kind != "Error" {
		r.fail(malformed("error of type %q", kind))
	}
	e := &RemoteError{Level: Verbosity(r.uint())}
	_ = r.string() // once a name
	e.Msg = r.string()
	noPosition := func() {
		if r.uint() != 0 {
			r.fail(malformed("an error has a position"))
		}
	}
	noPosition()
	r.each(func() {
		noPosition()
		e.Traces = append(e.Traces, r.string())
	})
	return e
}

func (w *writer) remoteError(e *RemoteError) {
	w.string("Error")
	w.uint(uint64(e.Level))
	w.string("Error")
	w.string(e.Msg)
	w.uint(0)
	w.uint(uint64(len(e.Traces)))
	for _, t := range e.Traces {
		w.uint(0)
		w.string(t)
	}
}

// event reads the rest of a log message of the given type; false: it is none.
func (r *reader) event(msg uint64) (e Event, ok bool) {
	switch msg {
	case msgNext:
		e.Kind = EventMessage
		// The level is not sent.
		e.Level = Info
		e.Text = r.string()
	case msgStartActivity:
		e.Kind = EventStart
		e.ID = r.uint()
		e.Level = Verbosity(r.uint())
		e.Type = r.uint()
		e.Text = r.string()
		e.Fields = r.fields()
		e.Parent = r.uint()
	case msgStopActivity:
		e.Kind = EventStop
		e.ID = r.uint()
	case msgResult:
		e.Kind = EventResult
		e.ID = r.uint()
		e.Type = r.uint()
		e.Fields = r.fields()
	default:
		return e, false
	}
	return e, true
}

func (r *reader) fields() []Field {
	var fs []Field
	r.each(func() {
		switch t := r.uint(); t {
		case 0:
			fs = append(fs, Field{Int: r.uint()})
		case 1:
			fs = append(fs, Field{IsText: true, Text: r.string()})
		default:
			r.fail(malformed("log field of type %d", t))
		}
	})
	return fs
}

// trimmed is e without the newline with which the daemon ends messages.
func (e Event) trimmed() Event {
	if e.Kind == EventMessage {
		e.Text = strings.TrimSuffix(e.Text, "\n")
	}
	return e
}

// event writes a log message of the given type.
func (w *writer) event(msg uint64, e Event) {
	w.uint(msg)
	switch e.Kind {
	case EventMessage:
		w.string(e.Text)
	case EventStart:
		w.uint(e.ID)
		w.uint(uint64(e.Level))
		w.uint(e.Type)
		w.string(e.Text)
		w.fields(e.Fields)
		w.uint(e.Parent)
	case EventStop:
		w.uint(e.ID)
	case EventResult:
		w.uint(e.ID)
		w.uint(e.Type)
		w.fields(e.Fields)
	}
}

func (w *writer) fields(fs []Field) {
	w.uint(uint64(len(fs)))
	for _, f := range fs {
		if f.IsText {
			w.uint(1)
			w.string(f.Text)
		} else {
			w.uint(0)
			w.uint(f.Int)
		}
	}
}

// stderr reads what the daemon sends while it works, up to the end of the work. The result is nil, a *RemoteError, or
// an error of the connection.
func (r *reader) stderr(log func(Event)) error {
	for {
		r.begin()
		msg := r.uint()
		switch {
		case r.err != nil:
			return r.err
		case msg == msgLast:
			return nil
		case msg == msgError:
			e := r.remoteError()
			if r.err != nil {
				return r.err
			}
			return e
		}
		e, ok := r.event(msg)
		if !ok {
			// msgRead and msgWrite belong to operations that are older than the versions spoken here.
			r.fail(malformed("log message of type %#x", msg))
		}
		if r.err != nil {
			return r.err
		}
		if log != nil {
			log(e.trimmed())
		}
	}
}
