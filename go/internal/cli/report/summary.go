package report

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"hercules/internal/cli/term"
	"hercules/internal/coordinator"
	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

const (
	// tableLimit is how many attributes a table lists; of more, only those that are not good.
	tableLimit = 60
	// logTail is how many lines of a failed build's log are shown.
	logTail = 25
	// lineLimit is how much of such a line is shown; all of it is in the log.
	lineLimit = 500
	// failureLimit is how many failures are shown with their logs.
	failureLimit = 20
)

// Summary writes what became of a job: the logs of failures, the table of attributes, and as the last line the
// verdict. logPath finds the log of a build, "" when there is none.
func Summary(s *term.Screen, result *coordinator.Result, logPath func(drv string) string) error {
	w := &summary{screen: s, result: result, logPath: logPath}
	evaluations := map[string]bool{}
	for _, a := range result.Attributes {
		evaluations[a.Evaluation] = true
	}
	for _, failed := range result.EvaluationFailures {
		evaluations[failed.Evaluation] = true
	}
	w.several = len(evaluations) > 1
	// Attributes that waited for a build are reported late; people look for a name.
	w.attributes = slices.SortedStableFunc(slices.Values(result.Attributes), func(a, b event.AttributeResult) int {
		return cmp.Or(strings.Compare(a.Evaluation, b.Evaluation), slices.Compare(a.Path, b.Path))
	})
	w.failures()
	w.table()
	w.verdict()
	return s.Println(w.lines...)
}

type summary struct {
	screen  *term.Screen
	result  *coordinator.Result
	logPath func(string) string
	several bool // evaluations
	// attributes of the result by evaluation and path
	attributes []event.AttributeResult
	lines      []string
}

func (w *summary) name(a event.AttributeResult) string {
	return attributeName(a.Evaluation, a.Path, w.several)
}

func (w *summary) add(format string, args ...any) {
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
}

// failures shows why: first what could not be evaluated, then each build that failed by itself.
func (w *summary) failures() {
	for _, failed := range w.result.EvaluationFailures {
		w.add("%s evaluating %s", w.screen.Paint(term.Red, "✘"), evaluationName(failed.Evaluation))
		w.indent(failed.Reason)
		w.add("")
	}
	for _, message := range w.result.Messages {
		w.add("%s %s", w.screen.Paint(term.Red, "✘"), w.screen.Clean(message.Message))
		w.add("")
	}
	attributes := map[string][]event.AttributeResult{}
	for _, a := range w.attributes {
		if a.Outcome == event.EvaluationError {
			w.add("%s %s", w.screen.Paint(term.Red, "✘"), w.screen.Paint(term.Bold, term.Strip(w.name(a))))
			w.indent(a.Reason)
			w.add("")
		}
		if a.Drv != "" {
			attributes[a.Drv] = append(attributes[a.Drv], a)
		}
	}
	title := func(failed event.BuildFinished) string {
		if a := attributes[failed.Drv]; len(a) > 0 {
			return w.name(a[0])
		}
		return DrvName(failed.Drv)
	}
	// In the order of their names, as the attributes: builds end in another order every time.
	failures := slices.SortedStableFunc(slices.Values(w.result.Failures), func(a, b event.BuildFinished) int {
		return strings.Compare(title(a), title(b))
	})
	shown := 0
	for _, failed := range failures {
		if failed.Status == event.DependencyFailed || failed.Status == event.Cancelled || expected(attributes[failed.Drv]) {
			continue
		}
		if shown++; shown > failureLimit {
			continue
		}
		w.failure(title(failed), failed, attributes[failed.Drv])
	}
	if shown > failureLimit {
		w.add("… and %d more failed builds", shown-failureLimit)
		w.add("")
	}
}

// expected says that all attributes of a derivation had to fail, so that its log is of no interest.
func expected(attributes []event.AttributeResult) bool {
	return len(attributes) > 0 && !slices.ContainsFunc(attributes, func(a event.AttributeResult) bool {
		return a.Type != agentapi.MustFail
	})
}

func (w *summary) failure(title string, failed event.BuildFinished, attributes []event.AttributeResult) {
	style, note := term.Red, ""
	if len(attributes) > 0 && attributes[0].Outcome == event.FailedIgnored {
		style, note = term.Yellow, " (may fail)"
	}
	w.add("%s %s%s  %s", w.screen.Paint(style, "✘"), w.screen.Paint(term.Bold, term.Strip(title)), note,
		w.screen.Paint(term.Dim, Duration(milliseconds(failed.DurationMS))))
	w.indent(failed.Reason)
	path := w.logPath(failed.Drv)
	if path != "" {
		reason, lines := explain(tail(path, logTail+nixWords), logTail)
		w.indent(reason)
		for _, line := range lines {
			w.add("  %s %s", w.screen.Paint(term.Dim, "│"), term.Cut(w.screen.Clean(line), lineLimit))
		}
		w.add("  log:        %s", path)
	}
	w.add("  reproduce:  nix-store --realise %s", failed.Drv)
	w.add("              nix log %s", failed.Drv)
	w.add("")
}

func (w *summary) indent(text string) {
	text = strings.TrimRight(w.screen.Clean(text), "\n")
	if text == "" {
		return
	}
	for line := range strings.SplitSeq(text, "\n") {
		w.add("  %s", line)
	}
}

var outcomes = map[event.Outcome]struct {
	sign  string
	word  string
	style term.Style
}{
	event.Good:              {"✔", "good", term.Green},
	event.FailedAsExpected:  {"✔", "failed as it must", term.Green},
	event.FailedIgnored:     {"~", "failed, may fail", term.Yellow},
	event.NotRun:            {"-", "effect, not run", term.Dim},
	event.Bad:               {"✘", "failed", term.Red},
	event.BadDependency:     {"✘", "dependency failed", term.Red},
	event.UnexpectedSuccess: {"✘", "should have failed", term.Red},
	event.EvaluationError:   {"✘", "evaluation error", term.Red},
	event.BuildError:        {"✘", "could not build", term.Red},
	event.Stopped:           {"-", "stopped", term.Yellow},
}

func (w *summary) table() {
	attributes := slices.Clone(w.attributes)
	hidden := 0
	if len(attributes) > tableLimit {
		attributes = slices.DeleteFunc(attributes, func(a event.AttributeResult) bool { return a.Outcome == event.Good })
		hidden = len(w.result.Attributes) - len(attributes)
	}
	if len(attributes) == 0 && hidden == 0 {
		return
	}
	var text strings.Builder
	tw := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, a := range attributes {
		what := outcomes[a.Outcome].word
		if a.Outcome == event.Good && a.Type == agentapi.DependenciesOnly {
			what = "dependencies good"
		}
		note := ""
		if a.Cause != "" {
			note = "because of " + DrvName(a.Cause)
		}
		// The sign goes in after the columns are made: colours have no width.
		fmt.Fprintf(tw, "%s\t%s\t%s\n", what, tabless(w.name(a)), tabless(note))
	}
	_ = tw.Flush() // writes to memory
	for i, line := range strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n") {
		if i >= len(attributes) {
			break
		}
		o := outcomes[attributes[i].Outcome]
		w.add("%s %s", w.screen.Paint(o.style, o.sign), strings.TrimRight(line, " "))
	}
	if hidden > 0 {
		w.add("%s %s not listed", w.screen.Paint(term.Green, "✔"), count(hidden, "good attribute"))
	}
	w.add("")
}

// tabless keeps text in its column.
func tabless(text string) string {
	return strings.NewReplacer("\t", " ", "\n", " ").Replace(term.Strip(text))
}

func (w *summary) verdict() {
	c := w.result.Counts
	word, style := "ok", term.Green
	switch w.result.Status {
	case event.Succeeded:
	case event.Cancelled:
		word, style = "stopped", term.Yellow
	default:
		word, style = "failed", term.Red
	}
	parts := []string{count(c.Attributes, "attribute"), fmt.Sprintf("%d built", c.Realised)}
	if there := c.Succeeded - c.Realised; there > 0 {
		parts = append(parts, fmt.Sprintf("%d already there", there))
	}
	if n := c.FailedAsExpected + c.FailedIgnored; n > 0 {
		parts = append(parts, fmt.Sprintf("%d failed as expected", n))
	}
	if c.Bad > 0 {
		parts = append(parts, fmt.Sprintf("%d failed", c.Bad))
	}
	if c.Errors > 0 {
		parts = append(parts, fmt.Sprintf("%d not evaluated", c.Errors))
	}
	if c.NotRun > 0 {
		parts = append(parts, fmt.Sprintf("%s not run", count(c.NotRun, "effect")))
	}
	w.add("%s — %s", w.screen.Paint(style, word), strings.Join(parts, ", "))
}

// tail gives the last lines of a file, as far as it can be read.
func tail(path string, n int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	// The last lines of a log fit in its last part; a first line that was cut by the seek is dropped.
	const part = 1 << 20
	cut := false
	if info, err := f.Stat(); err == nil && info.Size() > part {
		if _, err := f.Seek(-part, io.SeekEnd); err == nil {
			cut = true
		}
	}
	var lines []string
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, part+1)
	for scanner.Scan() {
		if cut {
			cut = false
			continue
		}
		lines = append(lines, scanner.Text())
		if len(lines) > n {
			lines = lines[1:]
		}
	}
	return lines
}

// nixWords is how many lines at the end of a log may be Nix's words about the failure.
const nixWords = 40

var (
	// failure is how the agent begins its explanation of a failed build.
	failure = regexp.MustCompile(`^Build of \S+ failed: `)
	// told are the reasons to which Nix's own words add nothing.
	told = regexp.MustCompile(`^(the builder (ended with exit code|was killed by signal)|it (printed|took) )`)
	// repeated begins the part of Nix's words that shows the end of the log once more.
	repeated = regexp.MustCompile(`(?i)^\s*last \d+ log lines:$`)
	// started is what Nix says first of all.
	started = regexp.MustCompile(`^building '/nix/store/`)
)

// explain splits the end of a failed build's log into the reason and at most n lines that came before it.
func explain(lines []string, n int) (reason string, rest []string) {
	rest = lines
	for i, line := range slices.Backward(lines) {
		prefix := failure.FindString(term.Strip(line))
		if prefix == "" {
			continue
		}
		rest = lines[:i]
		reasons := []string{strings.TrimPrefix(term.Strip(line), prefix)}
		if !told.MatchString(reasons[0]) {
			for _, word := range lines[i+1:] {
				if repeated.MatchString(term.Strip(word)) {
					break
				}
				reasons = append(reasons, word)
			}
		}
		reason = strings.Join(reasons, "\n")
		break
	}
	if len(rest) > 0 && started.MatchString(term.Strip(rest[0])) {
		rest = rest[1:]
	}
	return reason, rest[max(len(rest)-n, 0):]
}

// brief is the first line of an error, without the word that says that it is one.
func brief(text string) string {
	return strings.TrimSpace(strings.TrimPrefix(firstLine(term.Strip(text)), "error:"))
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
