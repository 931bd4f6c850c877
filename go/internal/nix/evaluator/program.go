package evaluator

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"hercules/internal/nix/daemon"
	"hercules/internal/proc"
)

// Program runs another command of the same nix program with the same settings, environment and store, and gives its
// standard output. An error that Nix reports is an [*EvalError], wrapped together with the exit status.
func (p *Process) Program(ctx context.Context, args ...string) ([]byte, error) {
	searchPath, err := joinSearchPath(p.cfg.SearchPath)
	if err != nil {
		return nil, err
	}
	cmd := proc.CommandGrace(ctx, 0, p.cfg.Program, append(p.cfg.arguments(), args...)...)
	cmd.Dir = p.cfg.Dir
	cmd.Env = append(p.cfg.environment(), "NIX_PATH="+searchPath, "XDG_DATA_HOME="+p.tmp)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	var lastErr string
	lines := &lineWriter{line: func(line []byte, _ int) {
		m, ok := ParseMessage(line)
		if !ok {
			if len(line) == 0 {
				return
			}
			m = daemon.Event{Kind: daemon.EventMessage, Level: daemon.Info, Text: string(line)}
		}
		if m.Kind == daemon.EventMessage && isError(m.Text) {
			lastErr = m.Text
			return
		}
		if strings.HasPrefix(m.Text, "trace: "+p.marker) {
			return // a result of an expression that is evaluated once more
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.log(m)
	}}
	cmd.Stderr = lines
	if err := cmd.Run(); err != nil {
		if lastErr != "" && ctx.Err() == nil {
			return nil, fmt.Errorf("%w (%w)", parseError(lastErr, p.cfg.Own), err)
		}
		return nil, fmt.Errorf("%s %s: %w", p.cfg.Program, args[0], err)
	}
	return stdout.Bytes(), nil
}

// lineWriter is a lineBuffer behind io.Writer.
type lineWriter struct {
	buf  lineBuffer
	line func(b []byte, dropped int)
}

func (w *lineWriter) Write(b []byte) (int, error) {
	w.buf.keep = []byte{0} // none
	w.buf.feed(b, w.line)
	return len(b), nil
}
