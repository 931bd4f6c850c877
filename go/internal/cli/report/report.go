// Package report shows a running job: as a live view on a terminal, as plain lines, or as JSON, and sums it up
// in a table when it is finished.
//
// It sees a job only through its events and its result; it must not know who runs it.
package report

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"hercules/internal/coordinator/event"
	"hercules/internal/nix/storepath"
)

// View shows events as they come. Handle is called from one goroutine at a time.
type View interface {
	Handle(event.Event) error
	// Tick is called a few times a second, so that clocks go on.
	Tick(now time.Time) error
	// Close removes what does not stay.
	Close() error
}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_'-]*$`)

// AttrPath writes an attribute path as one would in Nix: a.b."c d". The root is "(root)".
func AttrPath(path []string) string {
	if len(path) == 0 {
		return "(root)"
	}
	parts := make([]string, len(path))
	for i, name := range path {
		if identifier.MatchString(name) {
			parts[i] = name
			continue
		}
		escaped := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "${", `\${`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(name)
		parts[i] = `"` + escaped + `"`
	}
	return strings.Join(parts, ".")
}

// attributeName is AttrPath for a job in which there may be several evaluations.
func attributeName(evaluation string, path []string, several bool) string {
	switch {
	case !several || evaluation == "":
		return AttrPath(path)
	case len(path) == 0:
		return evaluation
	}
	return evaluation + ": " + AttrPath(path)
}

// DrvName is the name in a derivation's store path.
func DrvName(drv string) string {
	return strings.TrimSuffix(storepath.Name(drv), ".drv")
}

// Duration is short and steady in width: 0.3 s, 12 s, 3 min 05 s, 1 h 02 min.
func Duration(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
	default:
		return fmt.Sprintf("%d h %02d min", int(d.Hours()), int(d.Minutes())%60)
	}
}

// evaluationName is how an evaluation is called in text.
func evaluationName(evaluation string) string {
	if evaluation == "" {
		return "the configuration"
	}
	return evaluation
}

// count writes a number with its noun: "1 attribute", "2 attributes".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func milliseconds(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }
