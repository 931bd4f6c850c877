package storage

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
)

// ErrNoSpace is what a full cache or disk answers: 507.
var ErrNoSpace = errors.New("no space left in the cache")

// Space counts the bytes of a cache, those of uploads on their way included.
type Space struct {
	Dir     string // on the file system that is looked at
	Max     int64  // bytes, 0 without a bound
	Reserve int64  // bytes of the file system that are for others
	used    atomic.Int64
}

// Used is how many bytes are claimed.
func (s *Space) Used() int64 { return s.used.Load() }

// Count claims room for what is there already.
func (s *Space) Count(n int64) { s.used.Add(n) }

// Take claims room for n more bytes.
func (s *Space) Take(n int64) error {
	used := s.used.Add(n)
	if s.Max > 0 && used > s.Max {
		s.used.Add(-n)
		return fmt.Errorf("%w: it may have %d bytes and has %d", ErrNoSpace, s.Max, used-n)
	}
	if s.Reserve > 0 {
		if free, ok := freeSpace(s.Dir); ok && free-n < s.Reserve {
			s.used.Add(-n)
			return fmt.Errorf("%w: %d bytes are free on its disk, of which %d are kept for others", ErrNoSpace, free, s.Reserve)
		}
	}
	return nil
}

// Give returns what was taken.
func (s *Space) Give(n int64) { s.used.Add(-n) }

// IsNoSpace tells errors of a full disk too.
func IsNoSpace(err error) bool {
	return errors.Is(err, ErrNoSpace) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// step is how much room a spooled file claims at a time.
const step = 1 << 20

// Spool is a temporary file that claims its space as it grows.
type Spool struct {
	f       *os.File
	closed  bool
	space   *Space
	size    int64
	claimed int64
}

// NewSpool makes a temporary file in a directory.
func NewSpool(dir, pattern string, space *Space) (*Spool, error) {
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return nil, err
	}
	return &Spool{f: f, space: space}, nil
}

// Name is the file's name.
func (s *Spool) Name() string { return s.f.Name() }

// Size is how much has been written.
func (s *Spool) Size() int64 { return s.size }

// Rewind gives the file to be read from its beginning.
func (s *Spool) Rewind() (io.Reader, error) {
	_, err := s.f.Seek(0, io.SeekStart)
	return s.f, err
}

// Write implements [io.Writer].
func (s *Spool) Write(p []byte) (int, error) {
	if need := s.size + int64(len(p)) - s.claimed; need > 0 {
		need = max(need, step)
		if err := s.space.Take(need); err != nil {
			return 0, err
		}
		s.claimed += need
	}
	n, err := s.f.Write(p)
	s.size += int64(n)
	return n, err
}

// Finish closes the file, flushed to the disk if sync is set; its bytes stay claimed. Nothing happens when it is closed
// already.
func (s *Spool) Finish(sync bool) error {
	s.space.Give(s.claimed - s.size)
	s.claimed = s.size
	if s.closed {
		return nil
	}
	s.closed = true
	var err error
	if sync {
		err = s.f.Sync()
	}
	return errors.Join(err, s.f.Close())
}

// Reopen makes a finished file readable from its beginning.
func (s *Spool) Reopen() (io.Reader, error) {
	f, err := os.OpenFile(s.f.Name(), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	_ = s.f.Close()
	s.f, s.closed = f, false
	return f, nil
}

// Discard removes the file and gives its space back. It may be called at any time, more than once.
func (s *Spool) Discard() {
	_ = s.f.Close()
	_ = RemoveFile(s.f.Name())
	s.space.Give(s.claimed)
	s.claimed, s.size = 0, 0
}

// HandOver puts the finished file into the storage. Its bytes count as the storage's from now on.
func (s *Spool) HandOver() string {
	s.claimed, s.size = 0, 0
	return filepath.Clean(s.f.Name())
}
