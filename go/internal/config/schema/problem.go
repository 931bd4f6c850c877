package schema

import (
	"cmp"
	"slices"
	"strings"
	"unicode/utf8"

	"hercules/internal/config/tree"
)

// Problem is one thing that is wrong in a configuration file.
type Problem struct {
	File    string
	Pos     tree.Pos
	Key     string // the name with the names around it; empty for the file as a whole
	Message string
}

// String is "file:line:column: key: message", without what is not known.
func (p Problem) String() string {
	parts := []string{p.File}
	if p.Pos.Line > 0 {
		parts[0] += ":" + p.Pos.String()
	}
	if p.Key != "" {
		parts = append(parts, p.Key)
	}
	return strings.Join(append(parts, p.Message), ": ")
}

// Error is everything that is wrong in a configuration file.
type Error struct{ Problems []Problem }

// NewError makes an error of what is wrong in a file, in the order of the file.
func NewError(file string, problems ...Problem) *Error {
	for i := range problems {
		problems[i].File = file
	}
	sortProblems(problems)
	return &Error{problems}
}

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// sortProblems puts them in the order of the file; those without a place come last.
func sortProblems(ps []Problem) {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if (a.Pos.Line == 0) != (b.Pos.Line == 0) {
			return cmp.Compare(b.Pos.Line, a.Pos.Line)
		}
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Column, b.Pos.Column))
	})
}

// nearest gives the name that was probably meant, or nothing.
func nearest(name string, known []string) string {
	best, least := "", max(2, utf8.RuneCountInString(name)/3)+1
	for _, k := range known {
		// The wrong case alone is the nearest that a name can be.
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance counts the characters to insert, remove or replace (Levenshtein).
func distance(a, b string) int {
	s, t := []rune(a), []rune(b)
	if len(s) > 200 { // nothing of ours is as long; hostile names cost nothing
		return len(s)
	}
	row := make([]int, len(t)+1)
	for j := range row {
		row[j] = j
	}
	for i, c := range s {
		diagonal := row[0]
		row[0] = i + 1
		for j, d := range t {
			replace := diagonal
			if c != d {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(t)]
}
