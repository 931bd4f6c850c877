package evaluator

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"time"
)

// A file that ends too early gives the same error as a command that ends too early. The repl of older Nix (seen: 2.8
// and 2.26) can't tell them apart: it says nothing and waits for the rest of the command. The line that follows every
// command then makes the whole a syntax error in its second line, which is how we notice.

var secondLine = regexp.MustCompile(`«string»:2:`)

func unfinished(message string) bool {
	text := StripANSI(message)
	return strings.Contains(text, "syntax error") && secondLine.MatchString(text)
}

const (
	// explainLimit bounds asking once more; what is asked has just been evaluated up to its error.
	explainLimit = time.Minute
	// maxArgument is what Linux allows for one argument of a program.
	maxArgument = 128<<10 - 1
)

// explainUnfinished evaluates once more, by a program that says what the repl keeps to itself.
func (p *Process) explainUnfinished(ctx context.Context, defined, expr string) *EvalError {
	unknown := &EvalError{Message: "error: syntax error, unexpected end of file"}
	expr = "let " + defined + "in builtins.seq (" + expr + ") null"
	if len(expr) > maxArgument {
		return unknown
	}
	ctx, cancel := context.WithTimeout(ctx, explainLimit)
	defer cancel()
	_, err := p.Program(ctx, "eval", "--impure", "--expr", expr)
	if e, ok := errors.AsType[*EvalError](err); ok {
		return e
	}
	return unknown
}
