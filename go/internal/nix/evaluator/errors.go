package evaluator

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Reasons for which evaluators are killed; see [CrashError].
var (
	ErrMemoryLimit = errors.New("evaluation used more memory than it is allowed to")
	ErrClosed      = errors.New("evaluator was closed")
)

// EvalError says that the evaluation of an expression failed.
type EvalError struct {
	// Message is Nix's rendering with the place of the error, without trace; terminal colours are in it.
	Message string
	// Trace is the rest of the rendering, outermost or innermost frame first as this Nix has it; may be empty.
	Trace string
}

func (e *EvalError) Error() string { return StripANSI(e.Message) }

// CrashError says that an evaluator ended.
type CrashError struct {
	// Reason is what Kill was given, nil when it ended by itself.
	Reason error
	// State is how it ended: "exit status 1", "signal: killed".
	State string
	// Stderr is what it said last outside of the structured log.
	Stderr string
}

func (e *CrashError) Error() string {
	if e.Reason != nil {
		return e.Reason.Error()
	}
	s := "the evaluator ended unexpectedly (" + e.State + ")"
	if e.Stderr != "" {
		s += ": " + e.Stderr
	}
	return s
}

func (e *CrashError) Unwrap() error { return e.Reason }

// StackOverflow says that the process ended because its stack was full.
func (e *CrashError) StackOverflow() bool {
	return e.Reason == nil && strings.Contains(e.Stderr, "stack overflow")
}

func newCrash(err error, state *os.ProcessState, reason error, tail []string) *CrashError {
	c := &CrashError{Reason: reason, Stderr: strings.TrimSpace(strings.Join(tail, "\n"))}
	switch {
	case state != nil:
		c.State = state.String()
	case err != nil:
		c.State = err.Error()
	}
	return c
}

var ansi = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

// StripANSI removes terminal colours.
func StripANSI(s string) string { return ansi.ReplaceAllString(s, "") }

const esc = "(?:\x1b\\[[0-9;]*m)*"

var (
	errorStart = regexp.MustCompile("^" + esc + "error:" + esc)
	// Nix before 2.20 puts the trace after the message, innermost frame first.
	oldFrame = regexp.MustCompile("\n+ {7}" + esc + "…")
	// Later ones put it before, outermost first, and the message comes last with a heading of its own.
	newStart   = regexp.MustCompile("^" + esc + "error:" + esc + "\n {7}" + esc + `(?:…|\()`)
	newMessage = regexp.MustCompile("\n\n {7}(" + esc + "error:" + esc + ")")
	newFrame   = regexp.MustCompile("\n {7}" + esc + `(?:…|\()`)
	position   = regexp.MustCompile(`(?m)^ *at (.+?)(?::\d+:\d+)?:$`)
	// place is the place of an error with the lines of code around it, as far as it is at the end of a message.
	place = regexp.MustCompile("\n+ {7}" + esc + "at [^\n]*:\n+(?: *[0-9]*\\|[^\n]*(?:\n|$))*")
)

func isError(text string) bool { return errorStart.MatchString(text) }

// parseError splits the rendering of an error and removes the frames of our own files from it. Whatever is further
// out than such a frame is how we came to ask, and no business of the user either.
func parseError(text string, own []string) *EvalError {
	if text == "" {
		return &EvalError{Message: "error: the evaluator did not say what is wrong"}
	}
	var msg string
	var frames []string
	newStyle := newStart.MatchString(text)
	if newStyle {
		msg, frames = splitNew(text)
		for i := len(frames) - 1; i >= 0; i-- {
			if isOwn(frames[i], own) {
				frames = frames[i+1:]
				break
			}
		}
	} else {
		msg, frames = splitOld(text)
		for i, f := range frames {
			if isOwn(f, own) {
				frames = frames[:i]
				break
			}
		}
	}
	msg = place.ReplaceAllStringFunc(msg, func(m string) string {
		if isOwn(m, own) {
			return "\n"
		}
		return m
	})
	if strings.TrimSpace(msg) == "" {
		msg, frames = text, nil // no form that we know
	}
	return &EvalError{Message: strings.TrimRight(msg, "\n "), Trace: shorten(strings.Join(frames, "\n\n"))}
}

func splitOld(text string) (msg string, frames []string) {
	at := oldFrame.FindAllStringIndex(text, -1)
	if at == nil {
		return text, nil
	}
	for i, loc := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		frames = append(frames, strings.Trim(text[loc[0]:end], "\n"))
	}
	return text[:at[0][0]], frames
}

func splitNew(text string) (msg string, frames []string) {
	head := text
	if m := newMessage.FindStringSubmatchIndex(text); m != nil {
		head, msg = text[:m[0]], text[m[2]:]
	} else {
		msg = "error: evaluation failed"
	}
	at := newFrame.FindAllStringIndex(head, -1)
	for i, loc := range at {
		end := len(head)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		frames = append(frames, strings.Trim(head[loc[0]:end], "\n"))
	}
	return msg, frames
}

// isOwn says whether a frame points into one of our files, or into a command.
func isOwn(frame string, own []string) bool {
	m := position.FindStringSubmatch(StripANSI(frame))
	if m == nil {
		return false
	}
	if strings.HasPrefix(m[1], "«string»") {
		return true
	}
	for _, dir := range own {
		if strings.HasPrefix(m[1], dir+"/") {
			return true
		}
	}
	return false
}

// maxTrace bounds a trace in bytes: an endless recursion has a frame for each call.
const maxTrace = 128 << 10

func shorten(s string) string {
	if len(s) <= maxTrace {
		return s
	}
	head, tail := s[:maxTrace/2], s[len(s)-maxTrace/2:]
	if i := strings.LastIndexByte(head, '\n'); i > 0 {
		head = head[:i]
	}
	if i := strings.IndexByte(tail, '\n'); i >= 0 {
		tail = tail[i+1:]
	}
	return fmt.Sprintf("%s\n\n       (%d bytes of trace left out)\n\n%s", head, len(s)-len(head)-len(tail), tail)
}
