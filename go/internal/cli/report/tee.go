package report

import (
	"bufio"
	"io"
	"strings"
	"time"

	"hercules/internal/cli/term"
	"hercules/internal/coordinator/event"
)

// Tee shows events in another view and writes all log lines as text.
type Tee struct {
	View
	out   *bufio.Writer
	model *model
}

// informative is the level of the messages that Nix shows by itself; what is above it is for people who debug Nix.
const informative = 3

// NewTee makes a view that hands events on to view and writes log lines to w.
func NewTee(view View, w io.Writer) *Tee {
	return &Tee{View: view, out: bufio.NewWriterSize(w, 1<<16), model: newModel()}
}

// Handle implements View.
func (t *Tee) Handle(e event.Event) error {
	t.model.handle(e)
	if body, ok := e.Body.(event.Log); ok && (body.Builder || body.Level <= informative) {
		name := evaluationName(body.Evaluation)
		if body.Drv != "" {
			name = t.model.name(body.Drv)
		}
		// Errors of a buffered writer stay: the flush in Close reports them.
		for line := range strings.SplitSeq(term.Strip(body.Line), "\n") {
			_, _ = t.out.WriteString(term.Strip(name) + "> " + line + "\n")
		}
	}
	return t.View.Handle(e)
}

// Tick implements View.
func (t *Tee) Tick(now time.Time) error {
	if err := t.out.Flush(); err != nil {
		return err
	}
	return t.View.Tick(now)
}

// Close implements View.
func (t *Tee) Close() error {
	if err := t.out.Flush(); err != nil {
		return err
	}
	return t.View.Close()
}
