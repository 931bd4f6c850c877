package cli_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// This file makes what hci prints comparable: what differs from run to run (times, identifiers, hashes) goes, and
// what happens side by side is brought into an order. The order that must hold is checked on the way.

// anEvent is one line of hci run --json.
type anEvent struct {
	name   string
	fields map[string]any
	line   int
}

func (e *anEvent) text(key string) string {
	s, _ := e.fields[key].(string)
	return s
}

func (e *anEvent) path() string {
	parts, _ := e.fields["path"].([]any)
	var names []string
	for _, p := range parts {
		names = append(names, fmt.Sprint(p))
	}
	return strings.Join(names, "\x00")
}

func parseEvents(text string) ([]*anEvent, error) {
	var events []*anEvent
	decoder := json.NewDecoder(strings.NewReader(text))
	for decoder.More() {
		e := &anEvent{line: len(events) + 1}
		if err := decoder.Decode(&e.fields); err != nil {
			return nil, fmt.Errorf("event %d: %w", e.line, err)
		}
		e.name = e.text("event")
		events = append(events, e)
	}
	return events, nil
}

// events FILE TARGET writes the events in FILE to TARGET in their normal form.
func events(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: events FILE TARGET")
	}
	list, err := parseEvents(ts.ReadFile(args[0]))
	ts.Check(err)
	ts.Check(checkOrder(list))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(normalEvents(list)), 0o644))
}

// checkOrder holds the events to what every job must keep to.
func checkOrder(list []*anEvent) error {
	if len(list) == 0 || list[0].name != "job-started" || list[len(list)-1].name != "job-finished" {
		return fmt.Errorf("%d events, which do not begin with job-started and end with job-finished", len(list))
	}
	job := list[0].text("job")
	var last time.Time
	states := map[string]string{}   // of attempts
	evaluating := map[string]bool{} // by task
	waiting := map[string]int{}     // by path and drv
	lastPath := map[string]string{} // by evaluation, of attributes that did not wait
	waited := map[string]bool{}     // by evaluation and path
	results := map[string]int{}     // by evaluation and path
	attributes := map[string]int{}  // the selected ones
	for _, e := range list {
		bad := func(format string, args ...any) error {
			return fmt.Errorf("event %d (%s): %s", e.line, e.name, fmt.Sprintf(format, args...))
		}
		if e.text("job") != job {
			return bad("job %q, not %q", e.text("job"), job)
		}
		now, err := time.Parse(time.RFC3339Nano, e.text("time"))
		if err != nil {
			return bad("%v", err)
		}
		if e.name != "log" && now.Before(last) {
			return bad("time goes back")
		} else if e.name != "log" {
			last = now
		}
		key := e.text("evaluation") + "\x01" + e.path()
		switch e.name {
		case "evaluation-started":
			evaluating[e.text("task")] = true
		case "evaluation-finished":
			if !evaluating[e.text("task")] {
				return bad("it had not started")
			}
			delete(evaluating, e.text("task"))
		case "attribute-ifd":
			waited[key] = true
			if e.fields["done"] == true {
				waiting[key]--
			} else {
				waiting[key]++
			}
			if waiting[key] < 0 {
				return bad("done before it began")
			}
		case "attribute", "attribute-error":
			if e.fields["selected"] == true {
				attributes[key]++
			}
			if !waited[key] {
				if old := lastPath[e.text("evaluation")]; e.path() < old {
					return bad("path %q after %q", e.path(), old)
				}
				lastPath[e.text("evaluation")] = e.path()
			}
		case "attribute-result":
			results[key]++
		case "build-queued":
			if states[e.text("attempt")] != "" {
				return bad("queued twice")
			}
			states[e.text("attempt")] = "queued"
		case "build-started":
			if states[e.text("attempt")] != "queued" {
				return bad("after %q", states[e.text("attempt")])
			}
			states[e.text("attempt")] = "started"
		case "build-finished":
			if s := states[e.text("attempt")]; s != "started" && s != "queued" {
				return bad("after %q", s)
			}
			states[e.text("attempt")] = "finished"
		}
	}
	for attempt, state := range states {
		if state != "finished" {
			return fmt.Errorf("the build %s ended as %q", attempt, state)
		}
	}
	if len(evaluating) > 0 {
		return fmt.Errorf("%d evaluations did not end", len(evaluating))
	}
	for key, n := range waiting {
		if n != 0 {
			return fmt.Errorf("%q still waits", key)
		}
	}
	if !maps.Equal(attributes, results) {
		return fmt.Errorf("attributes and results do not match:\n%v\n%v", attributes, results)
	}
	return nil
}

// ranks is the order of the sections of the normal form: the job, evaluations, builds, results, the end.
var ranks = map[string]int{
	"job-started":        0,
	"handler":            1,
	"evaluation-started": 2, "attribute": 2, "attribute-error": 2, "attribute-ifd": 2, "message": 2,
	"build-required":      3,
	"evaluation-finished": 4,
	"build-queued":        5, "build-started": 5, "build-phase": 5, "build-retried": 5, "build-finished": 5, "log": 6,
	"attribute-result": 7,
	"job-finished":     8,
}

func normalEvents(list []*anEvent) string {
	list = slices.DeleteFunc(slices.Clone(list), func(e *anEvent) bool {
		// Progress depends on how reports are batched, and Nix's own chatter on its version.
		return e.name == "evaluation-progress" || e.name == "log" && e.fields["builder"] != true
	})
	slices.SortStableFunc(list, func(a, b *anEvent) int {
		ra, rb := ranks[a.name], ranks[b.name]
		if a.text("evaluation") != b.text("evaluation") && ra < 5 && rb < 5 && ra > 1 && rb > 1 {
			return strings.Compare(a.text("evaluation"), b.text("evaluation"))
		}
		order := cmp.Or(
			cmp.Compare(ra, rb),
			strings.Compare(a.text("evaluation"), b.text("evaluation")),
			strings.Compare(a.path(), b.path()),
		)
		if order == 0 && (ra == 3 || ra == 5 || ra == 6) {
			order = strings.Compare(dropHashes(a.text("drv")), dropHashes(b.text("drv")))
		}
		return order
	})
	// How often an attribute waits for the same thing depends on how the evaluators share the work.
	list = slices.CompactFunc(list, func(a, b *anEvent) bool {
		return a.name == "attribute-ifd" && b.name == a.name && a.path() == b.path() && a.text("drv") == b.text("drv")
	})
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	for _, e := range list {
		out.WriteString(e.name + " ")
		fields := normalValue(e.fields).(map[string]any)
		for _, key := range []string{"event", "time", "job", "task", "attempt", "agent", "durationMs"} {
			delete(fields, key)
		}
		if e.name == "attribute-ifd" {
			delete(fields, "done")
		}
		for _, key := range []string{"message", "reason"} {
			if text, ok := fields[key].(string); ok {
				fields[key] = wording.ReplaceAllString(text, "$1")
			}
		}
		delete(fields, "trace") // newer Nix has one nearly always
		_ = enc.Encode(fields)  // writes to memory
	}
	return out.String()
}

func normalValue(v any) any {
	switch v := v.(type) {
	case string:
		return normalText(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = normalValue(v[i])
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for key, value := range v {
			out[key] = normalValue(value)
		}
		return out
	}
	return v
}

var (
	// What Nix says in further lines, and in some cases in the first, depends on its version.
	wording   = regexp.MustCompile(`(?s)^([^\n]*?)(, expecting .*| \(possible infinite recursion\).*|; max-call-depth exceeded.*|\n.*)$`)
	hashes    = regexp.MustCompile(`(/\S*/root)?/nix/store/[0-9a-z]{32}-`)
	revisions = regexp.MustCompile(`\b[0-9a-f]{40}\b`)
	shortRevs = regexp.MustCompile(` at [0-9a-f]{12}\b`)
	ansi      = regexp.MustCompile("\x1b\\[[0-9;]*m")
	sources   = regexp.MustCompile(`/\S*/hci-run-\d+/w[o]rk/eval-\d+/(arg-src|fetch-src)/[^/'":\s]*`)
	systems   = regexp.MustCompile(`\b(x86_64|aarch64)-(linux|darwin)\b`)
	durations = regexp.MustCompile(`\b\d+(\.\d)? s\b`)
	uuids     = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	// Nix waits and goes on; it depends on the load of the machine.
	busy = regexp.MustCompile(`(?m)^.*SQLite database '.*' is busy\n`)
	runs = regexp.MustCompile(`/\S*/hercules-ci/runs/[^/\s]*`)
)

func dropHashes(text string) string { return hashes.ReplaceAllString(text, "/nix/store/HASH-") }

func normalText(text string) string {
	text = ansi.ReplaceAllString(text, "")
	text = dropHashes(text)
	text = sources.ReplaceAllString(text, "SOURCE")
	text = uuids.ReplaceAllString(text, "UUID")
	text = revisions.ReplaceAllString(text, "REV")
	text = systems.ReplaceAllString(text, "SYSTEM")
	return text
}

// plain [-sort] FILE TARGET writes what was printed for people to TARGET, without what differs from run to run.
func plain(ts *testscript.TestScript, _ bool, args []string) {
	sorted := len(args) > 0 && args[0] == "-sort"
	if sorted {
		args = args[1:]
	}
	if len(args) != 2 {
		ts.Fatalf("usage: plain [-sort] FILE TARGET")
	}
	text := ts.ReadFile(args[0])
	if strings.Contains(text, "\x1b") {
		ts.Fatalf("escape sequences in what is not written to a terminal: %q", text)
	}
	text = busy.ReplaceAllString(text, "")
	text = runs.ReplaceAllString(busy.ReplaceAllString(normalText(text), ""), "RUN")
	text = durations.ReplaceAllString(text, "N s")
	text = shortRevs.ReplaceAllString(text, " at REV")
	text = strings.ReplaceAll(text, ts.Getenv("WORK"), "WORK")
	if sorted {
		lines := strings.SplitAfter(text, "\n")
		slices.Sort(lines)
		text = strings.Join(lines, "")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o644))
}
