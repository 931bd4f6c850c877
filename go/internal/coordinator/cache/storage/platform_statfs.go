//go:build linux || darwin

package storage

import "golang.org/x/sys/unix"

// freeSpace is the room that an ordinary user still has on the file system of dir.
func freeSpace(dir string) (bytes int64, ok bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true
}
