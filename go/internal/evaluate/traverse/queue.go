package traverse

import "time"

// queue holds the attributes that nobody evaluates yet, the earliest in the walk's order on top, so that little
// piles up in order. It is guarded by walk.mu.
type queue struct {
	runs []run
}

// run is a row of siblings.
type run []*node

func (q *queue) push(r run) {
	if len(r) > 0 {
		q.runs = append(q.runs, r)
	}
}

// trim removes what is no longer pending from the top.
func (q *queue) trim() {
	for len(q.runs) > 0 {
		top := q.runs[len(q.runs)-1]
		for len(top) > 0 && top[0].state != pending {
			top = top[1:]
		}
		if len(top) > 0 {
			q.runs[len(q.runs)-1] = top
			return
		}
		q.runs = q.runs[:len(q.runs)-1]
	}
}

func (q *queue) empty() bool {
	q.trim()
	return len(q.runs) == 0
}

// size is how many there are at most.
func (q *queue) size() int {
	n := 0
	for _, r := range q.runs {
		n += len(r)
	}
	return n
}

// take removes up to n neighbours. One that wants a fresh evaluator comes alone.
func (q *queue) take(n int) run {
	q.trim()
	if len(q.runs) == 0 {
		return nil
	}
	top := q.runs[len(q.runs)-1]
	k := 1
	for !top[0].fresh && k < min(n, len(top)) && top[k].state == pending && !top[k].fresh {
		k++
	}
	taken := top[:k]
	q.runs[len(q.runs)-1] = top[k:]
	return taken
}

// pace chooses how many attributes go into a command: many when they are cheap, because a command has a price; one
// when they are heavy, so that other evaluators and the reader of events do not wait.
type pace struct {
	average time.Duration // of one attribute
}

const (
	commandTarget = 60 * time.Millisecond
	commandMax    = 500
	firstGuess    = commandTarget / 8
)

func (p *pace) done(n int, d time.Duration) {
	if n == 0 {
		return
	}
	each := d / time.Duration(n)
	if p.average == 0 {
		p.average = each
		return
	}
	// The more attributes it was measured on, the more it counts.
	p.average += (each - p.average) * time.Duration(min(n, 8)) / 10
}

func (p *pace) size(pending, workers int) int {
	avg := p.average
	if avg == 0 {
		avg = firstGuess
	}
	n := int(commandTarget / max(avg, time.Microsecond))
	if workers > 1 {
		n = min(n, (pending+2*workers-1)/(2*workers))
	}
	return max(1, min(n, commandMax))
}
