package config

import "runtime"

// machine is what derived defaults depend on.
type machine struct {
	cpus      int
	memoryMiB int // 0 where it is not known
}

// minEvaluatorMiB is what an evaluator needs to be useful for a large package set.
const minEvaluatorMiB = 2048

func thisMachine() machine {
	return machine{cpus: runtime.NumCPU(), memoryMiB: memoryMiB()}
}

// fitTo fills in the defaults that the schema calls derived.
func (c *Config) fitTo(m machine) {
	if c.ConcurrentTasks == 0 {
		c.ConcurrentTasks = Count(max(2, m.cpus))
	}
	if c.EvaluationWorkers == 0 {
		c.EvaluationWorkers = max(1, m.cpus)
	}
	if c.EvaluationMemoryMiB == 0 && m.memoryMiB > 0 {
		usable := m.memoryMiB / 4 * 3
		c.EvaluationMemoryMiB = min(usable, max(usable/c.EvaluationWorkers, minEvaluatorMiB))
	}
}
