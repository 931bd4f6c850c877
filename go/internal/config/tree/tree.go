// Package tree reads TOML and JSON into one kind of tree, with the place of everything in the file and the spelling
// of every name, so that one checker can give good messages for both. It knows no schema.
package tree

import (
	"encoding/json"
	"strconv"
)

// Kind is what a value is in the file.
type Kind int

// The kinds of both formats. Other is what only TOML has: dates and times, and numbers that are not finite.
const (
	Null Kind = iota
	Bool
	Int
	Float
	String
	List
	Table
	Other
)

// Pos is a place in the file, both numbers from 1. Zero is unknown: TOML gives no columns of names.
type Pos struct{ Line, Column int }

// String is "line:column", "line" or nothing.
func (p Pos) String() string {
	switch {
	case p.Line == 0:
		return ""
	case p.Column == 0:
		return strconv.Itoa(p.Line)
	default:
		return strconv.Itoa(p.Line) + ":" + strconv.Itoa(p.Column)
	}
}

// Node is a value and where it is.
type Node struct {
	Kind    Kind
	Pos     Pos
	Bool    bool
	Int     int64
	Text    string // of a String; of a Float and an Other as it is to be shown; of an Int, when it is beyond 64 bits
	Items   []*Node
	Entries []Entry // in the order of the file; in TOML, of its lines
}

// Entry is a name in a table. Pos is the place of the name where the format tells, else that of the value.
type Entry struct {
	Name  string
	Pos   Pos
	Value *Node
}

// SyntaxError is a file that cannot be read as its format.
type SyntaxError struct {
	Pos     Pos
	Message string
}

func (e *SyntaxError) Error() string {
	if e.Pos.Line == 0 {
		return e.Message
	}
	return e.Pos.String() + ": " + e.Message
}

// Get gives the value of a name in a table, or nil.
func (n *Node) Get(name string) *Node {
	for _, e := range n.Entries {
		if e.Name == name {
			return e.Value
		}
	}
	return nil
}

// AppendJSON writes the value as JSON. Other values are written as text.
func (n *Node) AppendJSON(b []byte) []byte {
	switch n.Kind {
	case Null:
		return append(b, "null"...)
	case Bool:
		return strconv.AppendBool(b, n.Bool)
	case Int:
		if n.Text != "" {
			return append(b, n.Text...)
		}
		return strconv.AppendInt(b, n.Int, 10)
	case Float:
		return append(b, n.Text...)
	case List:
		b = append(b, '[')
		for i, v := range n.Items {
			if i > 0 {
				b = append(b, ',')
			}
			b = v.AppendJSON(b)
		}
		return append(b, ']')
	case Table:
		b = append(b, '{')
		for i, e := range n.Entries {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, e.Name), ':')
			b = e.Value.AppendJSON(b)
		}
		return append(b, '}')
	default:
		return appendString(b, n.Text)
	}
}

func appendString(b []byte, s string) []byte {
	q, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string can always be encoded
	}
	return append(b, q...)
}
