package watch

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"slices"

	"github.com/fsnotify/fsnotify"
)

// notifier is told by the operating system when something happens in directories. Without it there is the poll.
type notifier struct {
	log     *slog.Logger
	watcher *fsnotify.Watcher      // nil: there is none
	have    map[string]fs.FileInfo // the directories that are watched, to know them again
	names   map[string]bool        // what is of interest in them
	refused string                 // the last trouble, which is logged once
}

func newNotifier(log *slog.Logger) *notifier {
	n := &notifier{log: log, have: map[string]fs.FileInfo{}}
	var err error
	if n.watcher, err = fsnotify.NewWatcher(); err != nil {
		n.watcher = nil
		n.trouble(err)
	}
	return n
}

func (n *notifier) close() {
	if n.watcher != nil {
		_ = n.watcher.Close()
	}
}

// events are all that happens in the directories, whether it is of interest or not.
func (n *notifier) events() <-chan fsnotify.Event {
	if n.watcher == nil {
		return nil
	}
	return n.watcher.Events
}

// errors tell that events were lost.
func (n *notifier) errors() <-chan error {
	if n.watcher == nil {
		return nil
	}
	return n.watcher.Errors
}

// arm watches what the paths are reached through at present.
func (n *notifier) arm(paths []string) {
	if n.watcher == nil {
		return
	}
	// What changes between the look and the watching is not notified: look again, until it was the same twice. If it
	// never is, something changes all the time, and there will be notifications.
	var before []string
	for range 10 {
		dirs, names := through(paths)
		n.watch(dirs)
		if slices.Equal(names, before) {
			break
		}
		before = names
	}
	n.names = make(map[string]bool, len(before))
	for _, name := range before {
		n.names[name] = true
	}
}

func through(paths []string) (dirs, names []string) {
	for _, p := range paths {
		d, n := chain(p)
		dirs, names = append(dirs, d...), append(names, n...)
	}
	slices.Sort(dirs)
	return slices.Compact(dirs), names
}

// watch makes the watched directories these.
func (n *notifier) watch(dirs []string) {
	watched := n.watcher.WatchList() // without those that are gone
	trouble := error(nil)
	for dir, was := range n.have {
		now, err := os.Lstat(dir)
		if err == nil && slices.Contains(dirs, dir) && slices.Contains(watched, dir) && os.SameFile(was, now) {
			continue
		}
		delete(n.have, dir)
		_ = n.watcher.Remove(dir) // an error means that it was gone
	}
	for _, dir := range dirs {
		if n.have[dir] != nil {
			continue
		}
		info, err := os.Lstat(dir)
		if err == nil {
			err = n.watcher.Add(dir)
		}
		if err == nil {
			n.have[dir] = info
		} else if !errors.Is(err, fs.ErrNotExist) {
			trouble = err
		}
	}
	n.trouble(trouble)
}

// trouble is said once, until it is another or over.
func (n *notifier) trouble(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != n.refused {
		n.log.Warn("changes of secrets are not noticed at once, but by looking for them now and then", "error", err)
	}
	n.refused = text
}
