package coordinator

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// source is a tarball that is packed when it is first asked for.
type source struct {
	dir     string
	secret  string
	archive Archive
	ctx     context.Context //nolint:containedctx // the life of the coordinator: a request that goes away must not spoil the file

	mu   sync.Mutex
	path string
}

// pack returns the file with the tarball. After an error it may be tried again.
func (s *source) pack(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.path != "" {
		return s.path, nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(s.dir, "pack-*")
	if err != nil {
		return "", err
	}
	err = s.archive(s.ctx, f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	path := filepath.Join(s.dir, s.secret+".tar.gz")
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return "", fmt.Errorf("packing the source: %w", err)
	}
	s.path = path
	return path, nil
}
