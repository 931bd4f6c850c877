package binarycache

import (
	"bytes"
	"errors"
	"io"
	"os"
)

// spoolMemory is how much of a file is kept in memory before it goes to disk.
const spoolMemory = 1 << 20

// spool holds a file until it is known what it came to: its name has its hash, a request its length, and an attempt may have to
// be repeated. Big ones are in a file without a name, which is gone with the process, whatever ends that.
type spool struct {
	create func() (*os.File, error)
	mem    []byte
	file   *os.File
	size   int64
}

func (s *spool) Write(b []byte) (int, error) {
	if s.file == nil && len(s.mem)+len(b) <= spoolMemory {
		s.mem = append(s.mem, b...)
		s.size += int64(len(b))
		return len(b), nil
	}
	if s.file == nil {
		f, err := s.create()
		if err != nil {
			return 0, err
		}
		s.file = f
		if _, err := f.Write(s.mem); err != nil {
			return 0, err
		}
		s.mem = nil
	}
	n, err := s.file.Write(b)
	s.size += int64(n)
	return n, err
}

// reader reads it from its beginning. Readers of one spool are independent.
func (s *spool) reader() io.ReadSeeker {
	if s.file == nil {
		return bytes.NewReader(s.mem)
	}
	return io.NewSectionReader(s.file, 0, s.size)
}

func (s *spool) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// nameless makes a temporary file that has no name any more.
func nameless(dir string) func() (*os.File, error) {
	return func() (*os.File, error) {
		f, err := os.CreateTemp(dir, "push-*.nar")
		if err != nil {
			return nil, err
		}
		if err := os.Remove(f.Name()); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	}
}
