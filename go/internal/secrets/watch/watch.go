// Package watch tells when the contents of files change, however the change is made: written in place, replaced by
// rename, or reached through links that are switched, as secret managers do with a directory per generation.
//
// What counts is the content. Notifications of the operating system only say when to look; where there are none, or too
// few, a slow poll looks. The package does not know what the files are for, and keeps no contents.
package watch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"
)

// maxSize bounds what is read of a file.
const maxSize = 16 << 20

// File is a watched file as it was last read.
type File struct {
	// Path is the one that was given.
	Path string
	// Content is what is in the file; nil when Err is set.
	Content []byte
	// Err says why the file cannot be read. It may be fs.ErrNotExist: a watched file need not exist.
	Err error
}

// Options of a [Watcher]. The zero value is fine.
type Options struct {
	// Debounce is how long it has to be quiet after a change before the files are read; 250 ms when zero. What is
	// written in several steps, or missing for a moment, is then seen once and whole.
	Debounce time.Duration
	// Poll is how often the files are read although nothing was noticed; a minute when zero.
	Poll time.Duration
	// Log gets what keeps changes from being noticed at once. Nil discards.
	Log *slog.Logger
}

// maxDelay bounds the debouncing of files that are never quiet, as a multiple of it.
const maxDelay = 20

// Watcher watches files. Make it with [New].
type Watcher struct {
	files []*file
	opt   Options
	again chan struct{}
}

type file struct {
	path string
	seen [sha256.Size]byte // of the content, or of the text of the error
}

// New makes a watcher of files. Their directories need not exist.
func New(paths []string, o Options) *Watcher {
	if o.Debounce <= 0 {
		o.Debounce = 250 * time.Millisecond
	}
	if o.Poll <= 0 {
		o.Poll = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{opt: o, again: make(chan struct{}, 1)}
	for _, p := range paths {
		w.files = append(w.files, &file{path: p})
	}
	return w
}

// Reread makes [Watcher.Run] read the files and report them, also when they are the same. It does not wait.
func (w *Watcher) Reread() {
	select {
	case w.again <- struct{}{}:
	default: // It is about to do so.
	}
}

// Run watches until ctx ends. It calls changed with all files, in the order in which they were given: once at the
// beginning, and then when at least one of them has changed. The calls come one at a time from the calling goroutine.
func (w *Watcher) Run(ctx context.Context, changed func([]File)) {
	n := newNotifier(w.opt.Log)
	defer n.close()
	poll := time.NewTicker(w.opt.Poll)
	defer poll.Stop()
	var quiet <-chan time.Time // nil: nothing has happened
	var latest time.Time       // for the reading, however busy it is

	look := func(report bool) {
		quiet = nil
		// Notifications first: what happens from here on, is either read below or notified.
		n.arm(w.paths())
		if files, differ := w.read(); differ || report {
			changed(files)
		}
	}
	wait := func() {
		now := time.Now()
		if quiet == nil {
			latest = now.Add(maxDelay * w.opt.Debounce)
		}
		quiet = time.After(min(w.opt.Debounce, latest.Sub(now)))
	}
	look(true)
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-n.events():
			if n.names[e.Name] {
				wait()
			}
		case <-n.errors(): // Events were lost.
			wait()
		case <-quiet:
			look(false)
		case <-poll.C:
			look(false)
		case <-w.again:
			look(true)
		}
	}
}

func (w *Watcher) paths() []string {
	paths := make([]string, 0, len(w.files))
	for _, f := range w.files {
		paths = append(paths, f.path)
	}
	return paths
}

// read reads the files, and says whether one differs from what was read before.
func (w *Watcher) read() (files []File, differ bool) {
	for _, f := range w.files {
		content, err := readFile(f.path)
		seen := sha256.Sum256(append([]byte("content "), content...))
		if err != nil {
			content, seen = nil, sha256.Sum256([]byte("error "+err.Error()))
		}
		differ = differ || seen != f.seen
		f.seen = seen
		files = append(files, File{Path: f.path, Content: content, Err: err})
	}
	return files, differ
}

// readFile reads a file in one go. It is not kept open: the next generation is another file.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0 {
		return nil, fmt.Errorf("%s is not a file", path) // Opening it could wait for ever.
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	err = errors.Join(err, f.Close())
	if err == nil && len(content) > maxSize {
		err = fmt.Errorf("%s is larger than %d MiB", path, maxSize>>20)
	}
	if err != nil {
		return nil, err
	}
	return content, nil
}

// Read reads a file as [Watcher.Run] does.
func Read(path string) File {
	content, err := readFile(path)
	return File{Path: path, Content: content, Err: err}
}
