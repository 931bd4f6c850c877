// Package atomicfile replaces files as a whole: a reader sees the old content or the new one, never a part,
// also after a power cut. It is a leaf and knows nothing of what it writes.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write makes path a regular file of exactly these bytes and this mode, whatever the umask. The content goes to a
// temporary file beside path, is flushed to disk and renamed over path. When it fails, path is as it was before and
// the temporary file is gone. A symbolic link at path is replaced, not followed.
func Write(path string, data []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	// CreateTemp makes the file with mode 0600, so that nobody else can open it before it has its mode.
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, errors.Join(err, ignoreMissing(os.Remove(f.Name()))))
		}
	}()
	if _, err = f.Write(data); err == nil {
		if err = f.Chmod(mode); err == nil {
			err = f.Sync()
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the rename itself durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	// Some file systems cannot sync a directory and say so; the content is safe there all the same.
	_ = d.Sync()
	return d.Close()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
