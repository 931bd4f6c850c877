//go:build linux || darwin

package proc

import (
	"fmt"
	"syscall"
)

// minFiles is the number of open files that the agent and its children should at least have (agent-behaviour §7.1).
const minFiles = 65536

// RaiseFileLimit raises the soft limit of open files to at least 65,536, or to the hard limit where that is lower,
// and returns the limit that now holds, also for programs started from here on. (The Go runtime raises its own limit
// but gives children the old one, until the limit is set explicitly, as it is here.)
func RaiseFileLimit() (uint64, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	before := l.Cur
	l.Cur = max(l.Cur, min(minFiles, l.Max))
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return before, fmt.Errorf("raise the limit of open files from %d to %d: %w", before, l.Cur, err)
	}
	if l.Cur < minFiles {
		return l.Cur, fmt.Errorf("the hard limit of open files is %d, lower than %d", l.Max, minFiles)
	}
	return l.Cur, nil
}
