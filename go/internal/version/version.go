// Package version says which release this program is. It is a leaf.
package version

import "strings"

// Version is the release, set by the linker: -ldflags "-X hercules/internal/version.Version=0.11.0".
var Version = "0.11.0-dev"

// Agent is the version as the coordinator wants it: digits and dots alone, so that "0.11.0-dev" is "0.11.0".
func Agent() string {
	end := strings.IndexFunc(Version, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end < 0 {
		return Version
	}
	return strings.TrimRight(Version[:end], ".")
}
