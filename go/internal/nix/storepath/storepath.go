// Package storepath has the rules of store paths, on plain strings: which are valid, what their parts are, and how
// the path of a text or of a fixed output is computed.
//
// It knows only the store directory /nix/store, and nothing of what is at a path.
package storepath

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/nix-community/go-nix/pkg/nixbase32"
)

// StoreDir is the store directory. Chroot stores have it too, below their root.
const StoreDir = "/nix/store"

const (
	// HashLen is the length of a path's hash part: 160 bits in Nix's base 32.
	HashLen = 32
	// MaxNameLen is the longest name (Nix: StorePath::MaxPathLen).
	MaxNameLen = 211

	prefix = StoreDir + "/"
)

// Valid tells whether a text is a store path: the store directory, a slash, and a base name that [ParseBase] takes.
// A path inside of a store path is not one.
func Valid(path string) bool {
	return strings.HasPrefix(path, prefix) && baseError(path[len(prefix):]) == ""
}

// Check is [Valid] with the reason.
func Check(path string) error {
	if !strings.HasPrefix(path, prefix) {
		return fmt.Errorf("%q is not a store path: it does not begin with %s", path, prefix)
	}
	if why := baseError(path[len(prefix):]); why != "" {
		return fmt.Errorf("%q is not a store path: %s", path, why)
	}
	return nil
}

// ParseBase makes a store path of a base name such as "<hash>-<name>", as narinfo references are.
func ParseBase(base string) (string, error) {
	if why := baseError(base); why != "" {
		return "", fmt.Errorf("%q is not the base name of a store path: %s", base, why)
	}
	return prefix + base, nil
}

// Of gives the store path that a file name lies in: itself or a leading part of it.
func Of(file string) (path string, ok bool) {
	if !strings.HasPrefix(file, prefix) {
		return "", false
	}
	end := len(file)
	if i := strings.IndexByte(file[len(prefix):], '/'); i >= 0 {
		end = len(prefix) + i
	}
	path = file[:end]
	return path, Valid(path)
}

// Base is the base name of a valid store path: hash part and name.
func Base(path string) string { return strings.TrimPrefix(path, prefix) }

// HashPart is the hash part of a valid store path; it names the narinfo in a cache.
func HashPart(path string) string {
	base := Base(path)
	return base[:min(HashLen, len(base))]
}

// Name is the name of a valid store path, without the hash part.
func Name(path string) string {
	base := Base(path)
	return base[min(HashLen+1, len(base)):]
}

// IsDerivation tells whether a store path is that of a derivation.
func IsDerivation(path string) bool { return strings.HasSuffix(path, ".drv") }

// CheckName says why a text cannot be the name of a store path.
func CheckName(name string) error {
	if why := nameError(name); why != "" {
		return fmt.Errorf("%q cannot be the name of a store path: %s", name, why)
	}
	return nil
}

func baseError(base string) string {
	if len(base) < HashLen+1 || base[HashLen] != '-' {
		return "it has no hash part"
	}
	for i := range HashLen {
		if !nixbase32.Is(base[i]) {
			return fmt.Sprintf("character %q in the hash part", base[i])
		}
	}
	return nameError(base[HashLen+1:])
}

// nameError follows checkName in Nix's path.cc. The names that mean directories were allowed before Nix 2.20.
func nameError(name string) string {
	switch {
	case name == "":
		return "the name is empty"
	case len(name) > MaxNameLen:
		return fmt.Sprintf("the name has %d characters, more than %d", len(name), MaxNameLen)
	}
	if rest, ok := strings.CutPrefix(name, "."); ok {
		rest = strings.TrimPrefix(rest, ".")
		if rest == "" || rest[0] == '-' {
			return "the name is, or begins like, a directory reference"
		}
	}
	for i := range len(name) {
		if !nameChars[name[i]] {
			return fmt.Sprintf("character %q in the name", name[i])
		}
	}
	return ""
}

var nameChars = func() (ok [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-._?=") {
		ok[c] = true
	}
	return ok
}()

// MakeTextPath computes the path of a text with references, as AddTextToStore and builtins.toFile give it and as
// derivations have it.
func MakeTextPath(name, contents string, refs []string) (string, error) {
	sum := sha256.Sum256([]byte(contents))
	return makePath(withRefs("text", refs), hex.EncodeToString(sum[:]), name)
}

// MakeFixedOutputPath computes the path of a fixed output. algo is such as "sha256", hash its bytes; recursive says
// that the hash is that of the NAR rather than of the one file.
func MakeFixedOutputPath(name string, recursive bool, algo string, hash []byte, refs []string) (string, error) {
	if recursive && algo == "sha256" {
		return makePath(withRefs("source", refs), hex.EncodeToString(hash), name)
	}
	if len(refs) > 0 {
		return "", fmt.Errorf("a fixed output with %s, recursive %t, cannot have references", algo, recursive)
	}
	method := ""
	if recursive {
		method = "r:"
	}
	inner := sha256.Sum256([]byte("fixed:out:" + method + algo + ":" + hex.EncodeToString(hash) + ":"))
	return makePath("output:out", hex.EncodeToString(inner[:]), name)
}

func withRefs(kind string, refs []string) string {
	if len(refs) == 0 {
		return kind
	}
	refs = slices.Compact(slices.Sorted(slices.Values(refs)))
	return kind + ":" + strings.Join(refs, ":")
}

// makePath hashes the fingerprint TYPE:sha256:HASH:STOREDIR:NAME, folded to 160 bits (Nix manual, store path
// specification).
func makePath(kind, hexHash, name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(kind + ":sha256:" + hexHash + ":" + StoreDir + ":" + name))
	var folded [20]byte
	for i, b := range sum {
		folded[i%len(folded)] ^= b
	}
	return prefix + nixbase32.EncodeToString(folded[:]) + "-" + name, nil
}
