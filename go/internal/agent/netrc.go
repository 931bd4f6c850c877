package agent

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"hercules/internal/secrets"
)

// netrc is the file with the credentials that the daemon uses for builds and substitutions: agent-behaviour 5.4. Unlike
// that of an evaluation, whose task brings credentials of its own, it is the same for all tasks; so it is written once,
// and again when the operator's file has changed. That all builds have the same settings lets them share connections.
type netrc struct {
	dir      string
	operator string // need not exist
	logins   []secrets.Login

	mu      sync.Mutex
	written bool
	from    stamp    // of the operator's file when it was written
	files   []string // the last one counts; running builds may still use the others
}

type stamp struct {
	size int64
	time time.Time
}

// file gives the file's path, or nothing when there are no credentials.
func (n *netrc) file() (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var now stamp
	info, err := os.Stat(n.operator)
	if err == nil {
		now = stamp{info.Size(), info.ModTime()}
	}
	switch {
	case err != nil && len(n.logins) == 0 && errors.Is(err, fs.ErrNotExist):
		return "", nil
	case n.written && now == n.from:
	default:
		path, err := secrets.WriteNetrc(n.dir, n.operator, n.logins)
		if err != nil {
			return "", err
		}
		n.files = append(n.files, path)
		n.written, n.from = true, now
	}
	return n.files[len(n.files)-1], nil
}

// remove removes the files.
func (n *netrc) remove() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range slices.Backward(n.files) {
		_ = os.Remove(f)
	}
	n.files, n.written = nil, false
}
