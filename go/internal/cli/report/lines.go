package report

import (
	"fmt"
	"strings"
	"time"

	"hercules/internal/cli/term"
	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// Lines shows a job as lines that stay. On a terminal it keeps to what went wrong and draws what is going on below.
type Lines struct {
	screen *term.Screen
	model  *model
	drawn  time.Time
}

// NewLines makes a view that writes to screen.
func NewLines(screen *term.Screen) *Lines {
	return &Lines{screen: screen, model: newModel()}
}

// Handle implements View.
func (l *Lines) Handle(e event.Event) error {
	l.model.handle(e)
	lines := l.lines(e)
	if len(lines) == 0 {
		return nil
	}
	if err := l.screen.Println(lines...); err != nil {
		return err
	}
	return l.draw(e.Time)
}

// Tick implements View.
func (l *Lines) Tick(now time.Time) error { return l.draw(now) }

// Close implements View.
func (l *Lines) Close() error { return l.screen.Region(nil) }

// lines gives what stays of an event.
func (l *Lines) lines(e event.Event) []string {
	s := l.screen
	switch body := e.Body.(type) {
	case event.Message:
		return []string{l.tag(term.Red, "message") + s.Clean(body.Message)}
	case event.AttributeError:
		if !body.Selected {
			return nil
		}
		return []string{l.tag(term.Red, "error") + term.Strip(attributeName(body.Evaluation, body.Path, l.model.selected > 1)) + ": " + brief(body.Message)}
	case event.EvaluationFinished:
		if body.Status != event.Succeeded {
			line := l.tag(term.Red, "stopped") + "evaluating " + evaluationName(body.Evaluation)
			if body.Reason != "" {
				line += ": " + s.Clean(body.Reason)
			}
			return []string{line}
		}
		if s.Live() {
			return nil
		}
		found := count(body.Attributes+body.Errors, "attribute") + errorsFound(body.Errors)
		if body.Evaluation == "" && l.model.jobs > 0 && body.Errors == 0 {
			found = count(l.model.jobs, "job")
		}
		return []string{l.tag(term.Plain, "evaluated") + evaluationName(body.Evaluation) + ": " + found + ", " +
			Duration(milliseconds(body.DurationMS))}
	case event.BuildRetried:
		return []string{l.tag(term.Yellow, "again") + term.Strip(l.model.name(body.Drv)) + ": " + s.Clean(body.Reason)}
	case event.BuildFinished:
		return l.buildFinished(body)
	}
	if s.Live() {
		return nil
	}
	switch body := e.Body.(type) {
	case event.EvaluationStarted:
		return []string{l.tag(term.Plain, "evaluating") + evaluationName(body.Evaluation)}
	case event.AttributeIFD:
		if !body.Done {
			return []string{l.tag(term.Plain, "waiting") + term.Strip(attributeName(body.Evaluation, body.Path, l.model.selected > 1)) + " needs " + DrvName(body.Drv) + " to be evaluated"}
		}
	case event.BuildStarted:
		return []string{l.tag(term.Plain, "building") + term.Strip(l.model.name(body.Drv))}
	}
	return nil
}

func (l *Lines) buildFinished(body event.BuildFinished) []string {
	name := term.Strip(l.model.name(body.Drv))
	took := "  " + l.screen.Paint(term.Dim, Duration(milliseconds(body.DurationMS)))
	switch body.Status {
	case event.Succeeded:
		if l.screen.Live() {
			return nil
		}
		return []string{l.tag(term.Green, "built") + name + took}
	case event.DependencyFailed:
		if l.screen.Live() {
			return nil
		}
		return []string{l.tag(term.Plain, "skipped") + name + ": needs " + term.Strip(l.model.name(body.Cause))}
	case event.Cancelled:
		return []string{l.tag(term.Yellow, "stopped") + name}
	}
	switch l.model.names[body.Drv].typ {
	case agentapi.MustFail:
		return []string{l.tag(term.Green, "failed") + name + ", as it must" + took}
	case agentapi.MayFail:
		return []string{l.tag(term.Yellow, "failed") + name + ", which it may" + took}
	}
	line := l.tag(term.Red, "failed") + name + took
	if reason := brief(body.Reason); reason != "" {
		line += "  " + reason
	}
	return []string{line}
}

// tag begins a line: a word in a column of its own.
func (l *Lines) tag(style term.Style, word string) string {
	return l.screen.Paint(style, fmt.Sprintf("%-10s", word)) + " "
}

// draw brings the region up to date, at most ten times a second.
func (l *Lines) draw(now time.Time) error {
	if !l.screen.Live() || now.Sub(l.drawn) < 100*time.Millisecond {
		return nil
	}
	l.drawn = now
	return l.screen.Region(l.region(now))
}

func (l *Lines) region(now time.Time) []string {
	_, height := l.screen.Size()
	s, m := l.screen, l.model
	var lines []string
	for _, name := range sortedKeys(m.evaluating) {
		line := s.Paint(term.Blue, "evaluating") + " " + evaluationName(name) + "  " +
			s.Paint(term.Dim, Duration(max(now.Sub(m.evaluating[name]), 0)))
		lines = append(lines, line)
	}
	running := m.running()
	room := max(height-len(lines)-3, 1)
	for i, b := range running {
		if i == room && len(running) > room {
			lines = append(lines, s.Paint(term.Dim, fmt.Sprintf("           … and %d more", len(running)-room)))
			break
		}
		line := s.Paint(term.Blue, "building  ") + " " + term.Strip(m.name(b.drv)) + "  " +
			s.Paint(term.Dim, Duration(max(now.Sub(b.started), 0)))
		if b.phase != "" {
			line += "  " + term.Strip(b.phase)
		}
		if b.line != "" {
			line += "  " + s.Paint(term.Dim, strings.ReplaceAll(term.Strip(b.line), "\t", " "))
		}
		lines = append(lines, line)
	}
	return append(lines, l.totals())
}

func (l *Lines) totals() string {
	s, m := l.screen, l.model
	finished := m.done + m.failed
	total := finished + len(m.building) + len(m.queued)
	parts := []string{bar(s, finished, total), count(m.attributes, "attribute") + errorsFound(m.errors)}
	if m.waiting > 0 {
		parts = append(parts, fmt.Sprintf("%d waiting for a build", m.waiting))
	}
	parts = append(parts, s.Paint(term.Green, fmt.Sprintf("%d done", m.done)))
	if m.failed > 0 {
		parts = append(parts, s.Paint(term.Red, fmt.Sprintf("%d failed", m.failed)))
	}
	parts = append(parts, fmt.Sprintf("%d building", len(m.building)), fmt.Sprintf("%d queued", len(m.queued)))
	return strings.Join(parts, s.Paint(term.Dim, " · "))
}

// bar draws how many of total are finished.
func bar(s *term.Screen, finished, total int) string {
	const width = 20
	filled := 0
	if total > 0 {
		filled = finished * width / total
	}
	return s.Paint(term.Green, strings.Repeat("━", filled)) + s.Paint(term.Dim, strings.Repeat("─", width-filled)) +
		fmt.Sprintf(" %d/%d", finished, total)
}

func errorsFound(n int) string {
	if n == 0 {
		return ""
	}
	return " (" + count(n, "error") + ")"
}
