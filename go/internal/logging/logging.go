// Package logging makes the program's log lines: one line a record on standard error, for a journal, a terminal or a
// file, with tokens cut out. It is a leaf and knows nothing of what is logged.
package logging

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
)

// Levels beyond those of slog, so that each of the journal's priorities has one.
const (
	LevelNotice    = slog.Level(2)
	LevelCritical  = slog.Level(12)
	LevelAlert     = slog.Level(16)
	LevelEmergency = slog.Level(20)
)

// levelRow is a level with its names; priority is that of syslog and the journal.
type levelRow struct {
	name, short string
	level       slog.Level
	priority    byte
	color       string
}

// levels, the least severe first.
var levels = []levelRow{
	{"DebugS", "DEBUG", slog.LevelDebug, '7', "90"},
	{"InfoS", "INFO", slog.LevelInfo, '6', "36"},
	{"NoticeS", "NOTICE", LevelNotice, '5', "32"},
	{"WarningS", "WARN", slog.LevelWarn, '4', "33"},
	{"ErrorS", "ERROR", slog.LevelError, '3', "31"},
	{"CriticalS", "CRITICAL", LevelCritical, '2', "1;31"},
	{"AlertS", "ALERT", LevelAlert, '1', "1;31"},
	{"EmergencyS", "EMERGENCY", LevelEmergency, '0', "1;31"},
}

// ParseLevel reads a value of the setting logLevel (agent-behaviour §1.3), case-sensitively.
func ParseLevel(name string) (slog.Level, error) {
	names := make([]string, len(levels))
	for i, l := range levels {
		if l.name == name {
			return l.level, nil
		}
		names[i] = l.name
	}
	return 0, fmt.Errorf("log level %q: expected one of %s", name, strings.Join(names, ", "))
}

// rowOf gives the row of a level, or of the next less severe one for a level in between.
func rowOf(level slog.Level) levelRow {
	i, found := slices.BinarySearchFunc(levels, level, func(l levelRow, want slog.Level) int { return int(l.level - want) })
	if !found && i > 0 {
		i--
	}
	return levels[i]
}

// Style is how a line looks.
type Style int

// Plain has a date; Terminal a time and colour; Journal a priority and neither, since the journal adds its own time.
const (
	Plain Style = iota
	Terminal
	Journal
)

// New makes a logger that writes one line a record to w. The level may be a *slog.LevelVar, to be set later.
func New(w io.Writer, level slog.Leveler, style Style) *slog.Logger {
	return slog.New(newHandler(w, level, style))
}

// NewStderr makes the logger of a program: on standard error, in the style that fits what stands behind it.
func NewStderr(level slog.Leveler) *slog.Logger {
	return New(os.Stderr, level, StyleOf(os.Stderr, os.Getenv))
}
