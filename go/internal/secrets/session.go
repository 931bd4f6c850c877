package secrets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"hercules/internal/atomicfile"
)

// noSession stands in session.key for no session: it is written before one is asked for, so that a directory that
// cannot be written is found out before a session is made that nobody could keep.
const noSession = "x"

// Sessions keeps the session token of an agent in a file (agent protocol §7).
type Sessions struct {
	Path string // <baseDirectory>/secretState/session.key
	Log  *slog.Logger
	// Create asks the coordinator for a session, with the join token.
	Create func(ctx context.Context, join Sensitive) (Sensitive, error)
}

// Session gives the session token to use: the one of the file when it was made with this join token, or else a new
// one. When that cannot be decided, or a new one is not to be had, the session of the file is used, with a warning.
func (s *Sessions) Session(ctx context.Context, join Sensitive) (Sensitive, error) {
	kept, err := s.load()
	if err != nil {
		return Sensitive{}, fmt.Errorf("session key: %w", err)
	}
	if kept.Empty() {
		if err := s.save(NewSensitive(noSession)); err != nil {
			return Sensitive{}, fmt.Errorf("session key: %w", err)
		}
		return s.create(ctx, join)
	}
	same, err := sameParent(join, kept)
	if err != nil {
		s.warn(err)
		return kept, nil
	}
	if same {
		return kept, nil
	}
	s.Log.Info("the join token has changed, making a new session")
	session, err := s.create(ctx, join)
	if err != nil {
		if ctx.Err() != nil {
			return Sensitive{}, err
		}
		s.warn(err)
		return kept, nil
	}
	return session, nil
}

func (s *Sessions) warn(err error) {
	s.Log.Warn("cannot tell whether the session belongs to the join token, or renew it; using it as it is. To force a new session, delete the file and restart the agent",
		"file", s.Path, "error", err)
}

func sameParent(join, session Sensitive) (bool, error) {
	id, err := JoinTokenID(join)
	if err != nil {
		return false, err
	}
	parent, err := sessionParent(session)
	return parent == id, err
}

func (s *Sessions) create(ctx context.Context, join Sensitive) (Sensitive, error) {
	session, err := s.Create(ctx, join)
	if err != nil {
		return Sensitive{}, fmt.Errorf("make a session: %w", err)
	}
	session = NewSensitive(strings.TrimSpace(session.Reveal()))
	if session.Empty() || session.Reveal() == noSession {
		return Sensitive{}, errors.New("make a session: the service answered with an empty token")
	}
	if err := s.save(session); err != nil {
		return Sensitive{}, fmt.Errorf("session key: %w", err)
	}
	return session, nil
}

// load gives an empty token where there is none.
func (s *Sessions) load() (Sensitive, error) {
	data, err := readFile(s.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Sensitive{}, err
	}
	text := strings.TrimSpace(string(data))
	if text == noSession {
		text = ""
	}
	return NewSensitive(text), nil
}

func (s *Sessions) save(token Sensitive) error {
	dir := filepath.Dir(s.Path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// MkdirAll leaves a directory that is there as it is.
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	return atomicfile.Write(s.Path, []byte(token.Reveal()), 0o600)
}
