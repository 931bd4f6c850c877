package watch

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxLinks on the way to a file; the kernel gives up at as many.
const maxLinks = 40

// chain follows a path through its links. It gives the directories to be notified of, and the names, directories and
// links and the file itself, that make the path lead elsewhere when they change.
//
// Notified of are the directory of each link, that of the file, and, where something is missing, the last directory
// that is there. Plain directories on the way are left out: they are seldom replaced, and some systems open every file
// of a directory that they watch.
func chain(path string) (dirs, names []string) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, nil
	}
	at := string(filepath.Separator) // has no links in it
	rest := split(abs)
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			at = filepath.Dir(at)
			continue
		}
		full := filepath.Join(at, name)
		info, err := os.Lstat(full)
		switch {
		case err == nil && info.IsDir() && len(rest) > 0:
			at = full
			continue
		case err == nil && info.Mode()&fs.ModeSymlink != 0:
			dirs, names = append(dirs, at), append(names, at, full)
			to, err := os.Readlink(full)
			if links++; err != nil || links > maxLinks {
				return dirs, names
			}
			if filepath.IsAbs(to) {
				at = string(filepath.Separator)
			}
			rest = append(split(to), rest...)
			continue
		}
		// The file; or what is not a directory, not there or not allowed.
		return append(dirs, at), append(names, at, full)
	}
	return dirs, names
}

// split gives the parts of a path, which may be "..", as it is written: Clean would take the links' part in them away.
func split(path string) []string {
	var parts []string
	for part := range strings.SplitSeq(filepath.ToSlash(path), "/") {
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	return parts
}
