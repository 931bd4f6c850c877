package report

import (
	"slices"
	"time"

	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// model is what the views for people know of a job: the events, added up.
type model struct {
	evaluating map[string]time.Time
	jobs       int // that herculesCI declares
	selected   int // those of them that are run
	attributes int
	errors     int
	waiting    int // attributes that wait for an import from derivation

	queued   map[string]bool // by derivation
	building map[string]*build
	done     int
	failed   int

	// names of derivations: the attribute that has it, and how its failure counts.
	names map[string]attribute
}

type attribute struct {
	path string
	typ  agentapi.AttributeType
}

type build struct {
	drv     string
	started time.Time
	phase   string
	line    string
}

func newModel() *model {
	return &model{
		evaluating: map[string]time.Time{},
		queued:     map[string]bool{},
		building:   map[string]*build{},
		names:      map[string]attribute{},
	}
}

// handle is called before the view shows the event.
func (m *model) handle(e event.Event) {
	switch body := e.Body.(type) {
	case event.EvaluationStarted:
		m.evaluating[body.Evaluation] = e.Time
	case event.EvaluationFinished:
		delete(m.evaluating, body.Evaluation)
	case event.Handler:
		m.jobs++
		if body.Selected {
			m.selected++
		}
	case event.Attribute:
		m.attributes++
		if _, ok := m.names[body.Drv]; !ok && body.Type != agentapi.DependenciesOnly {
			m.names[body.Drv] = attribute{attributeName(body.Evaluation, body.Path, m.selected > 1), body.Type}
		}
	case event.AttributeError:
		m.attributes++
		m.errors++
	case event.AttributeIFD:
		if body.Done {
			m.waiting--
		} else {
			m.waiting++
		}
	case event.BuildQueued:
		m.queued[body.Drv] = true
	case event.BuildStarted:
		delete(m.queued, body.Drv)
		m.building[body.Drv] = &build{drv: body.Drv, started: e.Time}
	case event.BuildPhase:
		if b := m.building[body.Drv]; b != nil {
			b.phase = body.Phase
		}
	case event.Log:
		if b := m.building[body.Drv]; b != nil && body.Builder {
			b.line = body.Line
		}
	case event.BuildRetried:
		delete(m.building, body.Drv)
		m.queued[body.Drv] = true
	case event.BuildFinished:
		delete(m.queued, body.Drv)
		delete(m.building, body.Drv)
		if body.Status == event.Succeeded {
			m.done++
		} else {
			m.failed++
		}
	}
}

// name of a derivation for people: the attribute that has it, else the name in its path.
func (m *model) name(drv string) string {
	if a, ok := m.names[drv]; ok {
		return a.path
	}
	return DrvName(drv)
}

// running gives the builds that are running, the longest first.
func (m *model) running() []*build {
	builds := make([]*build, 0, len(m.building))
	for _, b := range m.building {
		builds = append(builds, b)
	}
	slices.SortFunc(builds, func(a, b *build) int {
		if c := a.started.Compare(b.started); c != 0 {
			return c
		}
		if a.drv < b.drv {
			return -1
		}
		return 1
	})
	return builds
}
