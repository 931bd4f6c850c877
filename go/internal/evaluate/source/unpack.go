package source

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"
)

// Limits bound what an archive may unpack to. Zero values mean the defaults.
type Limits struct {
	// Bytes of all files together. The default is what the file system has free, less a reserve.
	Bytes int64
	// Entries is the number of files, directories and links; the default is 2,000,000.
	Entries int
}

const (
	defaultEntries = 2_000_000
	// keepFree is the part of the free space, as a divisor, that an archive may not take: other tasks write there.
	keepFree = 20
	// overhead is what an entry takes besides its contents.
	overhead = 512
)

// Unpack writes the gzipped tar archive r into the empty directory dir. Nothing is written outside of dir, whatever
// the archive says. Owners, set-user-id bits and the like are dropped, everything is writable by its owner, and
// modification times are kept because Nix shows them to expressions (lastModified).
//
// A symbolic link that leads out of dir is made, since repositories have such links and they do no harm while nobody
// follows them: nothing is written through it, [FindNixFile] does not follow it and neither does a restricted
// evaluator. The returned notes name those links.
func Unpack(ctx context.Context, r io.Reader, dir string, limits Limits) (notes []string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	u := &unpacker{root: root, here: root, hereName: ".", buf: make([]byte, 128<<10), entries: limits.Entries, bytes: limits.Bytes}
	if u.entries <= 0 {
		u.entries = defaultEntries
	}
	if free, ok := freeSpace(dir); ok && (u.bytes <= 0 || u.bytes > free-free/keepFree) {
		u.bytes, u.byDisk = free-free/keepFree, true
	}
	if u.bytes <= 0 && !u.byDisk {
		u.bytes = 1 << 40
	}
	defer u.leave()
	if err := u.archive(ctx, r); err != nil {
		return nil, err
	}
	return u.notes, nil
}

type unpacker struct {
	root *os.Root
	// here is the directory of the entry before, open: archives have the entries of a directory together.
	here     *os.Root
	hereName string
	dirs     []*tar.Header // to give them their times when they are full
	entries  int           // left
	bytes    int64         // left
	byDisk   bool
	buf      []byte
	notes    []string
	dead     int // links that lead out
}

func (u *unpacker) archive(ctx context.Context, r io.Reader) error {
	raw := bufio.NewReaderSize(r, 64<<10)
	z, err := gzip.NewReader(raw)
	if err != nil {
		return gzipStart(raw, err)
	}
	defer z.Close()
	t := tar.NewReader(z)
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return readFailure("", err)
		}
		if u.entries--; u.entries < 0 {
			return &ArchiveError{Reason: "it has too many entries"}
		}
		if err := u.entry(t, h); err != nil {
			return err
		}
	}
	// What follows is padding. It is read to its end because the check sum is there.
	pad, err := io.Copy(io.Discard, io.LimitReader(z, 64<<20))
	if err != nil {
		return readFailure("", err)
	}
	if pad == 64<<20 {
		return &ArchiveError{Reason: "there is too much after its end"}
	}
	u.leave()
	for i := len(u.dirs) - 1; i >= 0; i-- {
		h := u.dirs[i]
		_ = u.root.Chtimes(h.Name, h.ModTime, h.ModTime) // A directory may have been replaced since.
	}
	if u.dead > len(u.notes) {
		u.notes = append(u.notes, fmt.Sprintf("and %d more such links", u.dead-len(u.notes)))
	}
	return nil
}

func (u *unpacker) entry(t *tar.Reader, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader: // git archive puts the commit there
		return nil
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeCont, tar.TypeGNUSparse:
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return &ArchiveError{Entry: h.Name, Reason: "it is a device or a pipe, and a source has none"}
	default:
		return &ArchiveError{Entry: h.Name, Reason: fmt.Sprintf("its type %q is not known", h.Typeflag)}
	}
	name, err := entryName(h.Name)
	if err != nil {
		return err
	}
	if u.bytes -= overhead + max(h.Size, 0); h.Size < 0 || u.bytes < 0 {
		return u.tooBig(name)
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return &ArchiveError{Entry: h.Name, Reason: "it stands for the whole archive, and is not a directory"}
		}
		return nil
	}
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if dir == "" {
		dir = "."
	}
	if err := u.enter(dir); err != nil {
		return writeFailure(name, err)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		err = u.directory(name, base, h)
	case tar.TypeSymlink:
		err = u.symlink(name, base, h)
	case tar.TypeLink:
		err = u.link(name, h)
	default:
		err = u.file(t, base, h)
	}
	if err != nil {
		return writeFailure(name, err)
	}
	return nil
}

// enter makes dir, which may be given by later entries or not at all, the current directory.
func (u *unpacker) enter(dir string) error {
	if dir == u.hereName {
		return nil
	}
	u.leave()
	if dir == "." {
		return nil
	}
	sub, err := u.root.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = u.root.MkdirAll(dir, 0o755); err == nil {
			sub, err = u.root.OpenRoot(dir)
		}
	}
	if err != nil {
		return err
	}
	u.here, u.hereName = sub, dir
	return nil
}

func (u *unpacker) leave() {
	if u.here != u.root {
		u.here.Close()
		u.here, u.hereName = u.root, "."
	}
}

func (u *unpacker) directory(name, base string, h *tar.Header) error {
	err := u.here.Mkdir(base, 0o755)
	if errors.Is(err, fs.ErrExist) {
		info, err := u.here.Lstat(base)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			if err := u.here.Remove(base); err != nil {
				return err
			}
			if err := u.here.Mkdir(base, 0o755); err != nil {
				return err
			}
		}
	} else if err != nil {
		return err
	}
	u.dirs = append(u.dirs, &tar.Header{Name: name, ModTime: h.ModTime})
	return nil
}

func (u *unpacker) file(t *tar.Reader, base string, h *tar.Header) error {
	mode := fs.FileMode(0o644)
	if h.Mode&0o111 != 0 {
		mode = 0o755 // The executable bit is all that Nix sees of the mode.
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := u.here.OpenFile(base, flags, mode)
	if errors.Is(err, fs.ErrExist) {
		// A later entry replaces an earlier one, and never writes through it: it may be a link.
		if err := u.here.Remove(base); err != nil {
			return err
		}
		f, err = u.here.OpenFile(base, flags, mode)
	}
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(onlyWriter{f}, onlyReader{t}, u.buf); err != nil {
		f.Close()
		return err
	}
	setFileTime(f, h.ModTime)
	return f.Close()
}

// onlyReader and onlyWriter keep io.Copy to its own buffer, so that the errors of the two sides can be told apart.
type (
	onlyReader struct{ r io.Reader }
	onlyWriter struct{ w io.Writer }
)

func (r onlyReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = readFailure("", err)
	}
	return n, err
}

func (w onlyWriter) Write(p []byte) (int, error) { return w.w.Write(p) }

func (u *unpacker) symlink(name, base string, h *tar.Header) error {
	if h.Linkname == "" {
		return &ArchiveError{Entry: name, Reason: "it is a symbolic link to nothing"}
	}
	if leadsOut(name, h.Linkname) {
		if u.dead++; u.dead <= 3 {
			u.notes = append(u.notes, fmt.Sprintf("the link %q leads out of the source, to %q", clip(name, 200), clip(h.Linkname, 200)))
		}
	}
	if err := u.remove(base); err != nil {
		return err
	}
	if err := u.here.Symlink(h.Linkname, base); err != nil {
		return err
	}
	setLinkTime(u.here, base, h.ModTime)
	return nil
}

func (u *unpacker) link(name string, h *tar.Header) error {
	target, err := entryName(h.Linkname)
	if err != nil {
		return &ArchiveError{Entry: name, Reason: fmt.Sprintf("it is a hard link that leads out, to %q", clip(h.Linkname, 200))}
	}
	if target == name {
		return nil
	}
	if _, err := u.root.Lstat(target); errors.Is(err, fs.ErrNotExist) {
		return &ArchiveError{Entry: name, Reason: fmt.Sprintf("it is a hard link to %q, which is not in the archive before it", clip(target, 200))}
	}
	if err := u.root.Link(target, name); !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := u.root.Remove(name); err != nil {
		return err
	}
	return u.root.Link(target, name)
}

func (u *unpacker) remove(base string) error {
	if err := u.here.Remove(base); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (u *unpacker) tooBig(name string) error {
	if u.byDisk {
		return &ArchiveError{Entry: name, Reason: "it does not fit on the disk of the work directory; make room there", Err: syscall.ENOSPC}
	}
	return &ArchiveError{Entry: name, Reason: "the archive is larger than is allowed"}
}

// entryName is a name in an archive as a relative path without surprises.
func entryName(name string) (string, error) {
	switch {
	case name == "":
		return "", &ArchiveError{Reason: "an entry has no name"}
	case strings.HasPrefix(name, "/"):
		return "", &ArchiveError{Entry: name, Reason: "its name is absolute"}
	case strings.ContainsRune(name, 0):
		return "", &ArchiveError{Entry: name, Reason: "its name has a zero byte"}
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", &ArchiveError{Entry: name, Reason: "its name leads out with \"..\""}
		}
	}
	return path.Clean(name), nil
}

// leadsOut looks only at the text of the link. It is for people; [os.Root] is what protects.
func leadsOut(name, target string) bool {
	return strings.HasPrefix(target, "/") || !fs.ValidPath(path.Join(path.Dir(name), target))
}

func validTime(t time.Time) bool { return !t.IsZero() && t.Unix() >= 0 && t.Unix() < 1<<36 }
