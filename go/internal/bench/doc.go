// Package bench measures the programs against Nix itself, side by side on the same machine and in the same run, and
// prints one line a figure: NAME VALUE UNIT (limit LIMIT) ok, or … MISSED.
//
// It holds nothing but a test with the build tag bench, which `make bench` runs: figures depend on the machine, so
// they are no part of the test suite.
package bench
