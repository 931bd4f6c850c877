package plan

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Filter selects attributes: those that at least one pattern matches, all when there is none.
type Filter []Pattern

// Pattern matches attribute paths. See ParsePattern.
type Pattern struct {
	text     string
	segments []string
	literal  []bool
}

// ParsePattern reads a pattern of attribute paths: names separated by dots, in each of which *, ? and [a-z] match
// as in file names; ** stands for any number of names. A name in double quotes is taken literally, dots and all.
// A pattern also matches everything below what it matches.
func ParsePattern(s string) (Pattern, error) {
	p := Pattern{text: s}
	if s == "" {
		return p, errors.New("attribute pattern is empty")
	}
	for rest := s; ; {
		var seg string
		literal := strings.HasPrefix(rest, `"`)
		if literal {
			end := strings.IndexByte(rest[1:], '"')
			if end < 0 {
				return p, fmt.Errorf("attribute pattern %s: quote is not closed", s)
			}
			seg, rest = rest[1:1+end], rest[end+2:]
		} else {
			end := strings.IndexByte(rest, '.')
			if end < 0 {
				end = len(rest)
			}
			seg, rest = rest[:end], rest[end:]
			if seg == "" {
				return p, fmt.Errorf("attribute pattern %s: empty name", s)
			}
			if _, err := path.Match(seg, ""); err != nil {
				return p, fmt.Errorf("attribute pattern %s: %w", s, err)
			}
		}
		p.segments, p.literal = append(p.segments, seg), append(p.literal, literal)
		if rest == "" {
			return p, nil
		}
		if rest[0] != '.' {
			return p, fmt.Errorf("attribute pattern %s: expected a dot before %q", s, rest)
		}
		rest = rest[1:]
	}
}

// ParseFilter reads patterns.
func ParseFilter(patterns []string) (Filter, error) {
	f := make(Filter, 0, len(patterns))
	for _, s := range patterns {
		p, err := ParsePattern(s)
		if err != nil {
			return nil, err
		}
		f = append(f, p)
	}
	return f, nil
}

func (p Pattern) String() string { return p.text }

// Match tells whether the pattern matches attr or something above it; of errors also whether attr is above
// something that it could match, since the error hides that.
func (p Pattern) Match(attr []string, isError bool) bool {
	// states[i]: the first i segments have been used up
	states := make([]bool, len(p.segments)+1)
	states[0] = true
	for i := 0; ; i++ {
		p.skip(states)
		if states[len(p.segments)] {
			return true
		}
		if i == len(attr) {
			break
		}
		name := attr[i]
		next := make([]bool, len(states))
		for i, seg := range p.segments {
			if !states[i] {
				continue
			}
			if seg == "**" && !p.literal[i] {
				next[i] = true
				continue
			}
			if p.literal[i] {
				next[i+1] = next[i+1] || seg == name
			} else if ok, _ := path.Match(strings.ReplaceAll(seg, "/", "\x00"), strings.ReplaceAll(name, "/", "\x00")); ok {
				next[i+1] = true
			}
		}
		states = next
	}
	if !isError {
		return false
	}
	for _, s := range states {
		if s {
			return true
		}
	}
	return false
}

// skip lets ** stand for nothing.
func (p Pattern) skip(states []bool) {
	for i, seg := range p.segments {
		if states[i] && seg == "**" && !p.literal[i] {
			states[i+1] = true
		}
	}
}
