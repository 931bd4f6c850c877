package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hercules/internal/testnix"
)

// TestFullDisk: the sources do not fit where they are unpacked.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	small := filepath.Join(s.Dir(), "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("SKIP: cannot mount a small file system: " + err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	repo := repository(t, s, `{ good = sh "good" { } "echo > $out"; }`)
	s.File("repo/big", strings.Repeat("x", 4<<20))
	p := startHCI(t, s, []string{"TMPDIR=" + small}, "run", repo)
	if status := p.wait(); status != 1 {
		t.Errorf("exit status %d", status)
	}
	if out := p.stdout.String(); !strings.Contains(out, "✘ evaluating the configuration\n") || !strings.Contains(out, "no space left on device") {
		t.Error("standard output does not say what is wrong")
	}
	checkNothingLeft(t, s)
	if files, err := filepath.Glob(small + "/*"); err != nil || len(files) > 0 {
		t.Errorf("files are left: %q, %v", files, err)
	}
}
