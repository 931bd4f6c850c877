//go:build !race

package cli_test

const memoryFactor = 1
