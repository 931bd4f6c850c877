// Package bench measures the programs against Nix itself, side by side on the same machine and in the same run, and
// prints one line a figure: NAME VALUE UNIT (limit LIMIT) ok, or … MISSED.
//
// The limits are for two processors that do nothing else, which is why one that is missed is no failure: what has to do
// with several processes at once (a, b, d) loses more to other work on the machine than a single Nix process does.
//
// It holds nothing but a test with the build tag bench, which `make bench` runs: figures depend on the machine, so
// they are no part of the test suite.
package bench
