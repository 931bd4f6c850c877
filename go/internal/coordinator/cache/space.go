package cache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
)

// errNoSpace is what a full cache or disk answers: 507.
var errNoSpace = errors.New("no space left in the cache")

// space counts the bytes of a cache, those of uploads on their way included.
type space struct {
	dir          string
	max, reserve int64
	used         atomic.Int64
}

// take claims room for n more bytes.
func (s *space) take(n int64) error {
	used := s.used.Add(n)
	if s.max > 0 && used > s.max {
		s.used.Add(-n)
		return fmt.Errorf("%w: it may have %d bytes and has %d", errNoSpace, s.max, used-n)
	}
	if s.reserve > 0 {
		if free, ok := freeSpace(s.dir); ok && free-n < s.reserve {
			s.used.Add(-n)
			return fmt.Errorf("%w: %d bytes are free on its disk, of which %d are kept for others", errNoSpace, free, s.reserve)
		}
	}
	return nil
}

func (s *space) give(n int64) { s.used.Add(-n) }

// isNoSpace tells errors of a full disk too.
func isNoSpace(err error) bool {
	return errors.Is(err, errNoSpace) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// step is how much room a spooled file claims at a time.
const step = 1 << 20

// spool is a temporary file that claims its space as it grows.
type spool struct {
	f       *os.File
	closed  bool
	space   *space
	size    int64
	claimed int64
}

func (c *Cache) newSpool(pattern string) (*spool, error) {
	f, err := os.CreateTemp(c.tmp(), pattern)
	if err != nil {
		return nil, err
	}
	return &spool{f: f, space: c.space}, nil
}

func (s *spool) Write(p []byte) (int, error) {
	if need := s.size + int64(len(p)) - s.claimed; need > 0 {
		need = max(need, step)
		if err := s.space.take(need); err != nil {
			return 0, err
		}
		s.claimed += need
	}
	n, err := s.f.Write(p)
	s.size += int64(n)
	return n, err
}

// finish closes the file, flushed to the disk if sync is set; its bytes stay claimed. Nothing happens when it is closed
// already.
func (s *spool) finish(sync bool) error {
	s.space.give(s.claimed - s.size)
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

// reopen makes a finished file readable from its beginning.
func (s *spool) reopen() error {
	f, err := os.OpenFile(s.f.Name(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_ = s.f.Close()
	s.f, s.closed = f, false
	return nil
}

// discard removes the file and gives its space back. It may be called at any time, more than once.
func (s *spool) discard() {
	_ = s.f.Close()
	_ = removeFile(s.f.Name())
	s.space.give(s.claimed)
	s.claimed, s.size = 0, 0
}

// handOver puts the finished file into the storage. Its bytes count as the storage's from now on.
func (s *spool) handOver() string {
	s.claimed, s.size = 0, 0
	return filepath.Clean(s.f.Name())
}
