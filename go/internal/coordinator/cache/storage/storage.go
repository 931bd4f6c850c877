// Package storage keeps the files of a binary cache: a small interface that an object store could have too, the disk
// behind it, temporary files, and the count of the bytes that all of them take.
//
// It does not know what is in the files.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Storage keeps files under keys such as "nar/x.nar.zst". Keys are clean relative paths with slashes.
//
// A file that does not exist is an error that [errors.Is] fs.ErrNotExist. Methods are called concurrently, but never
// two that change one key.
type Storage interface {
	// Put makes a finished local file the content of key, at once, whole, and durable when it returns. The file is gone
	// afterwards, also when it fails.
	Put(ctx context.Context, key, file string) error
	// PutBytes is Put for a few bytes; tmp is a directory for temporary files.
	PutBytes(ctx context.Context, key string, data []byte, tmp string) error
	// Open reads a file. It stays readable when it is deleted meanwhile.
	Open(ctx context.Context, key string) (io.ReadSeekCloser, File, error)
	Stat(ctx context.Context, key string) (File, error)
	// Touch makes now the time of a file.
	Touch(ctx context.Context, key string, now time.Time) error
	// Delete removes a file; one that does not exist is no error.
	Delete(ctx context.Context, key string) error
	// Flush makes deletions durable, so that none of them is seen to be undone when later ones are not.
	Flush(ctx context.Context) error
	// List calls f with each file whose key begins with a prefix, which is "" or ends in a slash.
	List(ctx context.Context, prefix string, f func(File) error) error
}

// File is what a storage knows of a file.
type File struct {
	Key  string
	Size int64
	Time time.Time // of putting or touching it
}

// disk is a Storage in a directory. Keys are file names, so that the directory is a file:// cache too.
type disk struct {
	root string
	mode fs.FileMode
	sync bool
}

// NewDisk keeps files below root, in directories of this mode. Without sync a power cut may undo what was done last.
func NewDisk(root string, mode fs.FileMode, sync bool) (Storage, error) {
	if err := os.MkdirAll(filepath.Join(root, "nar"), mode); err != nil {
		return nil, err
	}
	return &disk{root: root, mode: mode, sync: sync}, nil
}

func (d *disk) path(key string) string { return filepath.Join(d.root, filepath.FromSlash(key)) }

func (d *disk) Put(_ context.Context, key, file string) error {
	path := d.path(key)
	err := d.put(path, file)
	if err != nil {
		return errors.Join(fmt.Errorf("store %s: %w", key, err), RemoveFile(file))
	}
	return nil
}

func (d *disk) put(path, file string) error {
	if err := os.Chmod(file, 0o644); err != nil {
		return err
	}
	if err := d.syncFile(file); err != nil {
		return err
	}
	err := os.Rename(file, path)
	if errors.Is(err, fs.ErrNotExist) { // a directory that nothing was in yet
		if err := os.MkdirAll(filepath.Dir(path), d.mode); err != nil {
			return err
		}
		if err := d.syncFile(filepath.Dir(filepath.Dir(path))); err != nil {
			return err
		}
		err = os.Rename(file, path)
	}
	if err != nil {
		return err
	}
	return d.syncFile(filepath.Dir(path))
}

// syncFile flushes a file or a directory.
func (d *disk) syncFile(path string) error {
	if !d.sync {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *disk) PutBytes(ctx context.Context, key string, data []byte, tmp string) error {
	f, err := os.CreateTemp(tmp, "bytes-")
	if err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("store %s: %w", key, err), RemoveFile(f.Name()))
	}
	return d.Put(ctx, key, f.Name())
}

func (d *disk) Open(_ context.Context, key string) (io.ReadSeekCloser, File, error) {
	f, err := os.Open(d.path(key))
	if err != nil {
		return nil, File{}, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: key, Err: fs.ErrNotExist}
	}
	if err != nil {
		f.Close()
		return nil, File{}, err
	}
	return f, File{Key: key, Size: st.Size(), Time: st.ModTime()}, nil
}

func (d *disk) Stat(_ context.Context, key string) (File, error) {
	st, err := os.Lstat(d.path(key))
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "stat", Path: key, Err: fs.ErrNotExist}
	}
	if err != nil {
		return File{}, err
	}
	return File{Key: key, Size: st.Size(), Time: st.ModTime()}, nil
}

func (d *disk) Touch(_ context.Context, key string, now time.Time) error {
	return os.Chtimes(d.path(key), now, now)
}

func (d *disk) Delete(_ context.Context, key string) error { return RemoveFile(d.path(key)) }

func (d *disk) Flush(context.Context) error {
	return errors.Join(d.syncFile(d.root), d.syncFile(filepath.Join(d.root, "nar")))
}

func (d *disk) List(ctx context.Context, prefix string, f func(File) error) error {
	return filepath.WalkDir(d.path(strings.TrimSuffix(prefix, "/")), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile, or nothing has been put there yet
		}
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if !e.Type().IsRegular() {
			return nil
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		rel, err := filepath.Rel(d.root, path)
		if err != nil {
			return err
		}
		return f(File{Key: filepath.ToSlash(rel), Size: st.Size(), Time: st.ModTime()})
	})
}

// RemoveFile removes a local file; one that does not exist is no error.
func RemoveFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
