//go:build race

package plan_test

func init() { bigGraph = 10_000 } // the race detector makes it ten times slower
