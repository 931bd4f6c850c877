// Package setup has what the tasks of an agent take from files that may change while it runs: the binary caches and the
// netrc, and what follows from them for Nix. It does not read the files, and knows no tasks.
package setup

import (
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"hercules/internal/formats"
	"hercules/internal/nix/nixconf"
	"hercules/internal/push"
	"hercules/internal/secrets"
	"hercules/internal/tasklog"
	"hercules/internal/wire/agentapi"
)

// Setup is what tasks take from files that may change while the agent runs: the binary caches and the netrc. It does
// not change itself. A task keeps the one that it started with to its end; the next one gets the newest.
//
// All tasks of a setup send the same settings to the daemon, and so can share connections.
type Setup struct {
	Caches   *secrets.BinaryCaches
	Operator []byte // content of the operator's netrc file; nil where there is none

	// Settings are sent to the daemon: what this user's Nix would send, with what agent-behaviour 5.3 puts on top.
	Settings map[string]string
	// Evaluator are the settings that differ from those of the user's Nix, for evaluators and Nix programs.
	Evaluator    map[string]string
	Substituters []string
	// Netrc is the file with the credentials (agent-behaviour 5.4), or empty when there are none. Unlike that of an
	// evaluation, whose task brings credentials of its own, it is the same for all tasks.
	Netrc string
	// hidden are the credentials in the URLs of caches. Nix shows them in logs and errors, which leave the machine.
	hidden []string
	// Pusher brings things into the caches; whoever makes a setup opens it.
	Pusher *push.Pusher
}

// New makes a setup, with its netrc file in dir. It has no pusher yet. Operator is the content of the operator's netrc, nil
// where there is none.
func New(dir string, nix *nixconf.Settings, nixSettings map[string]string, caches *secrets.BinaryCaches, operator []byte) (*Setup, error) {
	s := &Setup{
		Caches:       caches,
		Operator:     operator,
		Settings:     nix.Overridden(),
		Evaluator:    map[string]string{},
		Substituters: substituters(nix, caches),
	}
	maps.Copy(s.Evaluator, nixSettings)
	for _, uri := range s.Substituters {
		if c := credentialsOf(uri); c != "" {
			s.hidden = append(s.hidden, c)
		}
	}
	// Only where they say something new: to a daemon that does not trust us each of them is a warning in every log.
	if len(caches.Caches) > 0 {
		for _, settings := range []map[string]string{s.Settings, s.Evaluator} {
			settings["substituters"] = strings.Join(s.Substituters, " ")
			settings["trusted-public-keys"] = strings.Join(publicKeys(nix, caches), " ")
		}
	}
	if logins := caches.CachixLogins(); operator != nil || len(logins) > 0 {
		var err error
		if s.Netrc, err = secrets.WriteNetrc(dir, operator, logins); err != nil {
			return nil, err
		}
		s.Settings["netrc-file"] = s.Netrc
	}
	return s, nil
}

// Remove removes what was made for a setup.
func (s *Setup) Remove(log *slog.Logger) {
	if s.Pusher != nil {
		s.Pusher.Close()
	}
	if s.Netrc == "" {
		return
	}
	if err := os.Remove(s.Netrc); err != nil {
		log.Warn("the netrc file of tasks could not be removed", "error", err)
	}
}

// ProgramSettings are those that a Nix program of this user does not know by itself.
func (s *Setup) ProgramSettings() map[string]string {
	settings := maps.Clone(s.Evaluator)
	if s.Netrc != "" {
		settings["netrc-file"] = s.Netrc
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

// Shown is a text that may leave the machine.
func (s *Setup) Shown(text string) string {
	for _, h := range s.hidden {
		text = strings.ReplaceAll(text, h, tasklog.Hidden+"@")
	}
	return text
}

// ShownStatus is a status that may leave the machine.
func (s *Setup) ShownStatus(status agentapi.TaskStatus) agentapi.TaskStatus {
	if status.Exceptional != nil {
		text := s.Shown(*status.Exceptional)
		status.Exceptional = &text
	}
	return status
}

// ShownEvents are events that may leave the machine.
func (s *Setup) ShownEvents(events []agentapi.EvaluateEvent) []agentapi.EvaluateEvent {
	if len(s.hidden) == 0 {
		return events
	}
	events = slices.Clone(events)
	for i := range events {
		if m := events[i].Message; m != nil {
			c := *m
			c.Message = s.Shown(c.Message)
			events[i].Message = &c
		}
		if e := events[i].AttributeError; e != nil {
			c := *e
			c.ErrorMessage = s.Shown(c.ErrorMessage)
			if c.Trace != nil {
				trace := s.Shown(*c.Trace)
				c.Trace = &trace
			}
			events[i].AttributeError = &c
		}
	}
	return events
}

// Hidden are the credentials in the URLs of caches, which logs must not show.
func (s *Setup) Hidden() []string { return s.hidden }

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
