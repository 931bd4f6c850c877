// Package house holds the rules of this repository as tests: who may import whom, that every package says what it is
// for, that no package grows beyond what one can read, and that files name no machine. It has no code to import.
package house
