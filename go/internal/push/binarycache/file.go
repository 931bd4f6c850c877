package binarycache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hercules/internal/nix/narinfo"
)

// tempPrefix begins the names of files that are being written.
const tempPrefix = ".push-"

// staleAfter is the age at which such a file is what a killed process has left.
const staleAfter = 24 * time.Hour

// dir is a cache in a directory. A file gets its name when it is complete.
type dir string

func (d dir) open(context.Context) error {
	for _, name := range []string{"", "nar"} {
		path := filepath.Join(string(d), name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), tempPrefix) {
				continue
			}
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > staleAfter {
				_ = os.Remove(filepath.Join(path, e.Name()))
			}
		}
	}
	return nil
}

func (dir) close() {}

func (d dir) spool() *spool {
	return &spool{create: func() (*os.File, error) {
		return os.CreateTemp(filepath.Join(string(d), "nar"), tempPrefix+"*")
	}}
}

func (d dir) discard(s *spool) {
	if s.file != nil {
		_ = s.file.Close()
		_ = os.Remove(s.file.Name()) // an error if it has got its name, as it should be
	}
}

// has looks further than a server is asked to: a narinfo counts only with its archive in full size, so what a crash of the
// machine has spoilt is written anew.
func (d dir) has(_ context.Context, name string) (bool, error) {
	text, err := os.ReadFile(filepath.Join(string(d), name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	n, err := narinfo.Parse(text)
	if err != nil || !filepath.IsLocal(n.URL) {
		return false, nil
	}
	info, err := os.Stat(filepath.Join(string(d), n.URL))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return n.FileSize == 0 || uint64(info.Size()) == n.FileSize, nil
}

func (d dir) get(_ context.Context, name string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(string(d), name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

func (d dir) put(_ context.Context, name, _ string, s *spool) error {
	path := filepath.Join(string(d), name)
	f := s.file
	if f == nil {
		var err error
		if f, err = os.CreateTemp(filepath.Dir(path), tempPrefix+"*"); err != nil {
			return err
		}
		if _, err := f.Write(s.mem); err != nil {
			return errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}
	err := f.Chmod(0o644)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
