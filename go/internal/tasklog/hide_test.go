package tasklog_test

import (
	"strings"
	"testing"

	"hercules/internal/nix/daemon"
	"hercules/internal/tasklog"
	"hercules/internal/wire/agentapi"
)

func TestHide(t *testing.T) {
	t.Parallel()
	var got []string
	l := tasklog.New(t.Context(), tasklog.Options{Send: func(batch []agentapi.LogEntry) error {
		for _, e := range batch {
			line := e.Text
			for _, f := range e.Fields {
				line += "|" + f.Text
			}
			got = append(got, line)
		}
		return nil
	}})
	l.Line(daemon.Info, "before: me:pass@host")
	l.Hide()
	l.Hide("me:pass@", "")
	l.Hide("me:pass@", "long-token")
	fields := []daemon.Field{{IsText: true, Text: "https://me:pass@host/x"}, {Int: 7}, {IsText: true, Text: "me@host"}}
	l.Event(daemon.Event{Kind: daemon.EventStart, ID: 1, Text: "downloading 'https://me:pass@host/x'", Fields: fields})
	l.Line(daemon.Info, "a long-token in "+strings.Repeat("é", 1<<20))
	l.Close()
	if err := l.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(got) < 3 || got[0] != "before: me:pass@host" || got[1] != "downloading 'https://[redacted]@host/x'|https://[redacted]@host/x||me@host" ||
		!strings.HasPrefix(got[2], "a [redacted] in é") {
		t.Errorf("got %.200q", got)
	}
	if fields[0].Text != "https://me:pass@host/x" {
		t.Error("the fields of the sender were changed")
	}
}
