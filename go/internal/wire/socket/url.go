package socket

import (
	"fmt"
	"net/url"
	"strings"
)

// Paths of the two sockets (section 2.2), for [URL].
const (
	AgentPath = "/api/v1/agent-socket"
	LogPath   = "/api/v1/logs/build/socket"
)

// URL returns the address of a socket below a base URL of the service info, whose query string it keeps
// (section 2.3).
func URL(base, path string) (string, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return "", fmt.Errorf("socket base URL %q must be complete and start with http:// or https://", withoutQuery(base))
	}
	prefix := strings.TrimRight(u.EscapedPath(), "/") + path
	if u.Path, err = url.PathUnescape(prefix); err != nil {
		return "", fmt.Errorf("socket base URL %q: %w", withoutQuery(base), err)
	}
	u.RawPath = prefix
	u.Fragment, u.RawFragment = "", ""
	return u.String(), nil
}
