package evaluator

// Internals that tests look at.
var (
	ParseError     = parseError
	JoinSearchPath = joinSearchPath
)

// Lines cuts a stream that arrives in pieces, and gives the lines and how many bytes were left out.
func Lines(keep string, pieces ...[]byte) (lines []string, dropped int) {
	l := lineBuffer{keep: []byte(keep)}
	for _, p := range pieces {
		l.feed(p, func(b []byte, n int) {
			dropped += n
			if n == 0 {
				lines = append(lines, string(b))
			}
		})
	}
	return lines, dropped
}
