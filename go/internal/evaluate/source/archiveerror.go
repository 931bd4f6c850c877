package source

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"unicode"
)

// ArchiveError says what is wrong with an archive. Fetching it again does not help.
type ArchiveError struct {
	// Entry is the name of the offending entry, empty when it is the archive as a whole.
	Entry  string
	Reason string
	Err    error
}

func (e *ArchiveError) Error() string {
	var b strings.Builder
	b.WriteString("unpacking its archive")
	if e.Entry != "" {
		fmt.Fprintf(&b, ": entry %q", clip(e.Entry, 200))
	}
	b.WriteString(": " + e.Reason)
	if e.Err != nil {
		fmt.Fprintf(&b, " (%v)", e.Err)
	}
	return b.String()
}

func (e *ArchiveError) Unwrap() error { return e.Err }

func gzipStart(raw *bufio.Reader, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return readFailure("", io.ErrUnexpectedEOF)
	}
	if !errors.Is(err, gzip.ErrHeader) {
		return readFailure("", err)
	}
	return &ArchiveError{Reason: "it is not a gzipped tar archive", Err: err}
}

// readFailure is an error of the archive, unless the connection it comes from broke.
func readFailure(entry string, err error) error {
	var broken *transferError
	var archive *ArchiveError
	switch {
	case errors.As(err, &broken), errors.As(err, &archive), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &ArchiveError{Entry: entry, Reason: "it is cut off", Err: err}
	case errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader):
		return &ArchiveError{Entry: entry, Reason: "it is damaged", Err: err}
	case errors.Is(err, tar.ErrHeader):
		return &ArchiveError{Entry: entry, Reason: "it is not a gzipped tar archive, or it is damaged", Err: err}
	default:
		return &ArchiveError{Entry: entry, Reason: "it is damaged", Err: err}
	}
}

func writeFailure(name string, err error) error {
	var broken *transferError
	var archive *ArchiveError
	if errors.As(err, &archive) {
		if archive.Entry == "" {
			archive.Entry = name
		}
		return err
	}
	if errors.As(err, &broken) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &ArchiveError{Entry: name, Reason: "the disk of the work directory is full; make room there", Err: syscall.ENOSPC}
	}
	if strings.Contains(err.Error(), "path escapes from parent") { // os does not export this error
		return &ArchiveError{Entry: name, Reason: "a link on the way to it leads out of the archive"}
	}
	if e := (*os.PathError)(nil); errors.As(err, &e) {
		err = e.Err // The entry is named already; the absolute path is not for the reader.
	}
	return &ArchiveError{Entry: name, Reason: "it cannot be written", Err: err}
}

func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}
