package agent

import (
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"hercules/internal/formats"
	"hercules/internal/nix/nixconf"
	"hercules/internal/push"
	"hercules/internal/secrets"
	"hercules/internal/tasklog"
	"hercules/internal/wire/agentapi"
)

// setup is what tasks take from files that may change while the agent runs: the binary caches and the netrc. It does
// not change itself. A task keeps the one that it started with to its end; the next one gets the newest.
//
// All tasks of a setup send the same settings to the daemon, and so can share connections.
type setup struct {
	caches   *secrets.BinaryCaches
	operator []byte // content of the operator's netrc file; nil where there is none

	// settings are sent to the daemon: what this user's Nix would send, with what agent-behaviour 5.3 puts on top.
	settings map[string]string
	// evaluator are the settings that differ from those of the user's Nix, for evaluators and Nix programs.
	evaluator    map[string]string
	substituters []string
	// netrc is the file with the credentials (agent-behaviour 5.4), or empty when there are none. Unlike that of an
	// evaluation, whose task brings credentials of its own, it is the same for all tasks.
	netrc string
	// hidden are the credentials in the URLs of caches. Nix shows them in logs and errors, which leave the machine.
	hidden []string
	// pusher brings things into the caches; see openPusher.
	pusher *push.Pusher
}

// newSetup makes a setup, with its netrc file in dir.
func newSetup(dir string, nix *nixconf.Settings, nixSettings map[string]string, caches *secrets.BinaryCaches, operator []byte) (*setup, error) {
	s := &setup{
		caches:       caches,
		operator:     operator,
		settings:     nix.Overridden(),
		evaluator:    map[string]string{},
		substituters: substituters(nix, caches),
	}
	maps.Copy(s.evaluator, nixSettings)
	for _, uri := range s.substituters {
		if c := credentialsOf(uri); c != "" {
			s.hidden = append(s.hidden, c)
		}
	}
	// Only where they say something new: to a daemon that does not trust us each of them is a warning in every log.
	if len(caches.Caches) > 0 {
		for _, settings := range []map[string]string{s.settings, s.evaluator} {
			settings["substituters"] = strings.Join(s.substituters, " ")
			settings["trusted-public-keys"] = strings.Join(publicKeys(nix, caches), " ")
		}
	}
	if logins := caches.CachixLogins(); operator != nil || len(logins) > 0 {
		var err error
		if s.netrc, err = secrets.WriteNetrc(dir, operator, logins); err != nil {
			return nil, err
		}
		s.settings["netrc-file"] = s.netrc
	}
	return s, nil
}

// remove removes what was made for a setup.
func (s *setup) remove(log *slog.Logger) {
	if s.pusher != nil {
		s.pusher.Close()
	}
	if s.netrc == "" {
		return
	}
	if err := os.Remove(s.netrc); err != nil {
		log.Warn("the netrc file of tasks could not be removed", "error", err)
	}
}

// programSettings are those that a Nix program of this user does not know by itself.
func (s *setup) programSettings() map[string]string {
	settings := maps.Clone(s.evaluator)
	if s.netrc != "" {
		settings["netrc-file"] = s.netrc
	}
	return settings
}

// credentialsOf gives the user and password in a URL, as they are written there and with the "@".
func credentialsOf(uri string) string {
	_, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return ""
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	return rest[:strings.LastIndexByte(rest, '@')+1]
}

// shown is a text that may leave the machine.
func (s *setup) shown(text string) string {
	for _, h := range s.hidden {
		text = strings.ReplaceAll(text, h, tasklog.Hidden+"@")
	}
	return text
}

// shownStatus is a status that may leave the machine.
func (s *setup) shownStatus(status agentapi.TaskStatus) agentapi.TaskStatus {
	if status.Exceptional != nil {
		text := s.shown(*status.Exceptional)
		status.Exceptional = &text
	}
	return status
}

// shownEvents are events that may leave the machine.
func (s *setup) shownEvents(events []agentapi.EvaluateEvent) []agentapi.EvaluateEvent {
	if len(s.hidden) == 0 {
		return events
	}
	events = slices.Clone(events)
	for i := range events {
		if m := events[i].Message; m != nil {
			c := *m
			c.Message = s.shown(c.Message)
			events[i].Message = &c
		}
		if e := events[i].AttributeError; e != nil {
			c := *e
			c.ErrorMessage = s.shown(c.ErrorMessage)
			if c.Trace != nil {
				trace := s.shown(*c.Trace)
				c.Trace = &trace
			}
			events[i].AttributeError = &c
		}
	}
	return events
}

// substituters are where Nix may get paths from: agent-behaviour 5.3.
func substituters(nix *nixconf.Settings, caches *secrets.BinaryCaches) []string {
	var ours, cachix []string
	for _, c := range caches.Caches {
		if c.Kind == formats.KindNixCache {
			ours = append(ours, c.Substituter())
		} else {
			cachix = append(cachix, c.Substituter())
		}
	}
	return unique(slices.Concat(ours, nix.Substituters(), cachix))
}

func publicKeys(nix *nixconf.Settings, caches *secrets.BinaryCaches) []string {
	var ours, cachix []string
	for _, c := range caches.Caches {
		if c.Kind == formats.KindNixCache {
			ours = append(ours, c.PublicKeys...)
		} else {
			cachix = append(cachix, c.PublicKeys...)
		}
	}
	return unique(slices.Concat(ours, nix.TrustedPublicKeys(), cachix))
}

// unique keeps the first of equal ones. A slash at the end makes no difference to Nix.
func unique(list []string) []string {
	seen := map[string]bool{}
	out := []string{}
	for _, s := range list {
		if key := strings.TrimRight(s, "/"); s != "" && !seen[key] {
			seen[key] = true
			out = append(out, s)
		}
	}
	return out
}

// setups has the newest setup, and keeps earlier ones for as long as tasks use them.
type setups struct {
	log *slog.Logger

	mu      sync.Mutex
	newest  *setup
	users   map[*setup]int
	problem string // why the newest is not what the files say; empty when it is
}

// take gives the newest setup, which stays usable until it is released.
func (h *setups) take() (s *setup, release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s = h.newest
	h.users[s]++
	return s, sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.users[s]--
		h.clear(s)
	})
}

// replace makes s, which may be nil at the end, the newest.
func (h *setups) replace(s *setup) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.newest
	h.newest = s
	h.clear(old)
}

// clear removes a setup that nobody can use any more.
func (h *setups) clear(s *setup) {
	if s == nil || s == h.newest || h.users[s] > 0 {
		return
	}
	delete(h.users, s)
	s.remove(h.log)
}

// state is the newest setup, to look at, and what is wrong with the files that it was to be made of.
func (h *setups) state() (newest *setup, problem string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.newest, h.problem
}

func (h *setups) setProblem(problem string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problem = problem
}
