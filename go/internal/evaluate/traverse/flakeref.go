package traverse

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// GitFlakeRef is the flake reference of a commit: {type=git, url, ref, rev} (agent-behaviour 3.2). Ref and rev may
// be empty.
func GitFlakeRef(rawURL, ref, rev string) string {
	u := rawURL
	if !strings.Contains(u, "://") {
		// The scp-like form of git: user@host:path.
		if host, path, ok := strings.Cut(u, ":"); ok && !strings.Contains(host, "/") {
			u = "ssh://" + host + "/" + strings.TrimPrefix(path, "/")
		} else {
			u = "file://" + (&url.URL{Path: u}).EscapedPath()
		}
	}
	u, fragment, _ := strings.Cut(u, "#")
	_ = fragment // means nothing in the URL of a repository
	if !strings.HasPrefix(u, "git+") {
		u = "git+" + u
	}
	sep := "?"
	if strings.Contains(u, "?") {
		sep = "&"
	}
	for _, p := range [...][2]string{{"ref", ref}, {"rev", rev}} {
		if p[1] != "" {
			u += sep + p[0] + "=" + url.QueryEscape(p[1])
			sep = "&"
		}
	}
	return u
}

// LocalFlakeRef is the flake reference of a directory of this machine: its git repository when there is a .git
// next to the flake, else the plain directory (agent-behaviour 3.3).
func LocalFlakeRef(dir string) string {
	escaped := (&url.URL{Path: dir}).EscapedPath()
	if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
		return "git+file://" + escaped
	}
	return "path:" + escaped
}
