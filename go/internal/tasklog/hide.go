package tasklog

import (
	"slices"
	"strings"

	"hercules/internal/nix/daemon"
)

// Hide replaces texts in what comes from now on: Nix names caches by their URLs, with the password that is in them, and
// what is in a log leaves the machine. It may be called again with more texts. They should be long enough not to occur
// by chance.
func (l *Log) Hide(texts ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range texts {
		if t != "" && !slices.Contains(l.secrets, t) {
			l.secrets = append(l.secrets, t)
		}
	}
	if len(l.secrets) == 0 {
		return
	}
	pairs := make([]string, 0, 2*len(l.secrets))
	for _, s := range l.secrets {
		to := Hidden
		if strings.HasSuffix(s, "@") { // the user of a URL, which is still one then
			to += "@"
		}
		pairs = append(pairs, s, to)
	}
	l.hide.Store(strings.NewReplacer(pairs...))
}

// Hidden stands for what was hidden.
const Hidden = "[redacted]"

// without is the event without what is hidden.
func (l *Log) without(e daemon.Event) daemon.Event {
	r := l.hide.Load()
	if r == nil {
		return e
	}
	e.Text = r.Replace(e.Text)
	for i, f := range e.Fields {
		text := r.Replace(f.Text)
		if text == f.Text {
			continue
		}
		e.Fields = slices.Clone(e.Fields) // They may be somebody else's too.
		e.Fields[i].Text = text
	}
	return e
}
