package plan

// closure returns the inputs of n, direct and indirect, that have to be built for it as far as is known.
func (p *Planner) closure(j *job, n *node, substitutes bool) []*node {
	limit := -1
	if substitutes {
		limit = p.opts.MaxIFDInputs
	}
	all := p.walk(j, n, limit, func(*edge) bool { return true })
	if limit < 0 || len(all) <= limit {
		return all
	}
	// Too much to be built here, so probably in a cache: only what a cache is known not to have.
	return p.walk(j, n, -1, func(e *edge) bool { return e.input.missing })
}

// walk collects inputs, dependencies first, leaving out what is done, wanted already or in a cache. It stops when
// more than limit (≥ 0) are found.
func (p *Planner) walk(j *job, n *node, limit int, take func(*edge) bool) []*node {
	type frame struct {
		n *node
		i int
	}
	var out []*node
	seen := map[*node]bool{n: true}
	for stack := []frame{{n: n}}; len(stack) > 0; {
		f := &stack[len(stack)-1]
		if f.i == len(f.n.inputs) {
			if f.n != n {
				out = append(out, f.n)
			}
			stack = stack[:len(stack)-1]
			continue
		}
		e := f.n.inputs[f.i]
		f.i++
		in := e.input
		if seen[in] || in.state == succeeded || !in.known || e.inCache() || !take(e) {
			continue
		}
		if r := j.refs[in]; r != nil && r.built {
			continue
		}
		if limit >= 0 && len(seen) > limit+1 {
			return make([]*node, limit+1)
		}
		seen[in] = true
		stack = append(stack, frame{n: in})
	}
	return out
}
