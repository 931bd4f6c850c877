// Command testsummary reads what `go test -json` prints and shows it for people: a line for each package, the whole
// output of each test that failed, why tests were skipped, and one last line. Its exit status is 1 when something
// failed. It is used by `make test`.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// event is a line of `go test -json` (go doc test2json).
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
	FailedBuild                               string
}

func main() {
	if !summarize(os.Stdin, os.Stdout, time.Now()) {
		os.Exit(1)
	}
}

type summary struct {
	out                               io.Writer
	output                            map[string][]string // of what still runs, by package and test
	builds                            map[string][]string // by import path
	skips                             map[string]int      // reasons
	packages, passed, failed, skipped int
	broken                            []string
}

func summarize(in io.Reader, out io.Writer, start time.Time) bool {
	s := &summary{out: out, output: map[string][]string{}, builds: map[string][]string{}, skips: map[string]int{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(out, "%s", line) // not of the stream: what go itself has to say
			} else {
				s.event(e)
			}
		}
		if err != nil {
			break
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(s.skips)) {
		fmt.Fprintf(out, "%s (%d×)\n", reason, s.skips[reason])
	}
	word := "ok"
	switch {
	case len(s.broken) > 0:
		word = "FAILED in " + strings.Join(s.broken, ", ")
	case s.packages == 0:
		word = "FAILED: no package was tested"
	}
	fmt.Fprintf(out, "test: %s: %d packages, %d tests passed, %d failed, %d skipped, %d s\n", word, s.packages, s.passed, s.failed, s.skipped, int(time.Since(start).Seconds()))
	return word == "ok"
}

func (s *summary) event(e event) {
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "output":
		s.output[key] = append(s.output[key], e.Output)
	case "build-output":
		s.builds[e.ImportPath] = append(s.builds[e.ImportPath], e.Output)
	case "pass", "fail", "skip":
		lines := s.output[key]
		delete(s.output, key)
		if e.Test == "" {
			s.packageEnd(e, lines)
			return
		}
		switch e.Action {
		case "pass":
			s.passed++
		case "fail":
			s.failed++
			fmt.Fprintf(s.out, "%s", strings.Join(lines, ""))
		case "skip":
			s.skipped++
			s.skips[reason(lines)]++
		}
	}
}

func (s *summary) packageEnd(e event, lines []string) {
	if e.Action == "skip" { // no test files
		return
	}
	s.packages++
	if e.Action == "pass" {
		fmt.Fprintf(s.out, "ok    %-50s %6.1f s\n", e.Package, e.Elapsed)
		return
	}
	s.broken = append(s.broken, e.Package)
	fmt.Fprintf(s.out, "%s", strings.Join(s.builds[e.FailedBuild], ""))
	// A test that was running when the program died has no end of its own.
	for key, unfinished := range s.output {
		if strings.HasPrefix(key, e.Package+"\x00") {
			fmt.Fprintf(s.out, "%s", strings.Join(unfinished, ""))
		}
	}
	fmt.Fprintf(s.out, "%sFAIL  %-50s %6.1f s\n", strings.Join(lines, ""), e.Package, e.Elapsed)
}

// reason is the text of t.Skip, "SKIP: …".
func reason(lines []string) string {
	for _, l := range lines {
		if _, r, ok := strings.Cut(l, "SKIP: "); ok {
			return "SKIP: " + strings.TrimSpace(r)
		}
	}
	for _, l := range lines {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "===") {
			return "SKIP: " + l
		}
	}
	return "SKIP: no reason given"
}
