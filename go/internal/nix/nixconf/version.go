package nixconf

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"hercules/internal/proc"
)

// Version of a Nix.
type Version struct {
	Major, Minor int
	// Text is the whole of it, such as "2.26.3" or "2.30.0pre20250521_dirty".
	Text string
}

// AtLeast tells whether the version is major.minor or newer.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

func (v Version) String() string { return v.Text }

// ProgramVersion asks a program of Nix for its version.
func ProgramVersion(ctx context.Context, program string) (Version, error) {
	var stdout, stderr bytes.Buffer
	cmd := proc.Command(ctx, program, "--version")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return Version{}, explain(ctx, program, "its version", err, stderr.String())
	}
	v, err := ParseVersion(stdout.String())
	if err != nil {
		return Version{}, fmt.Errorf("version of %s: %w", program, err)
	}
	return v, nil
}

// ParseVersion reads what nix --version prints, such as "nix (Nix) 2.8.0". The version is the last word.
func ParseVersion(line string) (Version, error) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return Version{}, fmt.Errorf("%q is not a version", line)
	}
	text := words[len(words)-1]
	parts := strings.SplitN(text, ".", 3)
	if len(parts) < 2 {
		return Version{}, fmt.Errorf("%q is not a version", text)
	}
	major, err := strconv.Atoi(parts[0])
	if err != nil {
		return Version{}, fmt.Errorf("%q is not a version", text)
	}
	digits := parts[1]
	if i := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = digits[:i] // "4pre2021"
	}
	minor, err := strconv.Atoi(digits)
	if err != nil {
		return Version{}, fmt.Errorf("%q is not a version", text)
	}
	return Version{Major: major, Minor: minor, Text: text}, nil
}
