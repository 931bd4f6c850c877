//go:build unix

package source

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// freeSpace of the file system of dir, in bytes.
func freeSpace(dir string) (int64, bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, false
	}
	free := uint64(st.Bavail) * uint64(st.Bsize)
	return int64(min(free, 1<<62)), true
}

// setFileTime and setLinkTime do what they can: a wrong time is no reason to refuse a source.
func setFileTime(f *os.File, t time.Time) {
	if validTime(t) {
		tv := unix.NsecToTimeval(t.UnixNano())
		_ = unix.Futimes(int(f.Fd()), []unix.Timeval{tv, tv})
	}
}

func setLinkTime(dir *os.Root, base string, t time.Time) {
	if !validTime(t) {
		return
	}
	d, err := dir.Open(".")
	if err != nil {
		return
	}
	defer d.Close()
	ts := unix.NsecToTimespec(t.UnixNano())
	_ = unix.UtimesNanoAt(int(d.Fd()), base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
