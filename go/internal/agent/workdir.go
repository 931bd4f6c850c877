package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// prepareWorkDirectory makes the directories of agent-behaviour 2.1 with their modes.
func prepareWorkDirectory(dir string) (secure string, err error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return "", fmt.Errorf("making the work directory: %w. Change workDirectory, or let the agent's user write there", err)
	}
	secure = filepath.Join(dir, "secure")
	if err := os.MkdirAll(secure, 0o700); err != nil {
		return "", fmt.Errorf("making the directory for secrets: %w", err)
	}
	// At every start, whatever the umask was and whoever made it.
	if err := os.Chmod(secure, 0o700); err != nil {
		return "", fmt.Errorf("closing the directory for secrets to others: %w", err)
	}
	return secure, nil
}

// sweep removes what a killed agent has left behind in its work directory. Nothing else is touched; somebody may have
// chosen a directory that has other things in it.
func sweep(dir string, log *slog.Logger) {
	removed := 0
	remove := func(dir string, ours func(name string) bool) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			log.Warn("work directory not cleaned", "error", err)
			return
		}
		for _, e := range entries {
			if !ours(e.Name()) {
				continue
			}
			if err := removeAll(filepath.Join(dir, e.Name())); err != nil {
				log.Warn("leftover of an earlier run not removed", "error", err)
				continue
			}
			removed++
		}
	}
	remove(dir, func(name string) bool { return strings.HasPrefix(name, "eval-") || strings.HasPrefix(name, "effect-") })
	remove(filepath.Join(dir, "secure"), func(string) bool { return true })
	if removed > 0 {
		log.Info("leftovers of an earlier run removed", "count", removed)
	}
}

// removeAll removes a tree that may have directories without write permission, as unpacked sources have.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(p, 0o700) //nolint:gosec // a directory on its way out
		}
		if err != nil && d != nil && d.IsDir() {
			return nil
		}
		return err
	})
	return os.RemoveAll(path)
}
