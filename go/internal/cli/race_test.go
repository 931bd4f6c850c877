//go:build race

package cli_test

// memoryFactor is how much more memory the race detector may take.
const memoryFactor = 8
