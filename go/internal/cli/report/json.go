package report

import (
	"bufio"
	"encoding/json"
	"io"
	"time"

	"hercules/internal/coordinator/event"
)

// JSON writes one event a line, each as soon as it comes.
type JSON struct {
	out *bufio.Writer
	enc *json.Encoder
	// pending says that something was written since the last flush.
	pending bool
}

// NewJSON makes a view that writes to w.
func NewJSON(w io.Writer) *JSON {
	out := bufio.NewWriterSize(w, 1<<16)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	return &JSON{out: out, enc: enc}
}

// Handle implements View. Log lines may stay in the buffer until the next tick, everything else goes out.
func (j *JSON) Handle(e event.Event) error {
	if err := j.enc.Encode(e); err != nil {
		return err
	}
	j.pending = true
	if _, ok := e.Body.(event.Log); ok {
		return nil
	}
	return j.flush()
}

// Tick implements View.
func (j *JSON) Tick(time.Time) error { return j.flush() }

// Close implements View.
func (j *JSON) Close() error { return j.flush() }

func (j *JSON) flush() error {
	if !j.pending {
		return nil
	}
	j.pending = false
	return j.out.Flush()
}
