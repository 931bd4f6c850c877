package source_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hercules/internal/evaluate/source"
)

// TestFullDisk unpacks to a file system that is too small: by what the archive says, and by what it turns out to need.
func TestFullDisk(t *testing.T) {
	if os.Getenv("SOURCE_TEST_FULL_DISK") == "" {
		// In a mount namespace of its own, so that nothing stays mounted.
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.run=^TestFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), "SOURCE_TEST_FULL_DISK="+t.TempDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
		if os.Geteuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		}
		out, err := cmd.CombinedOutput()
		if e := (*exec.ExitError)(nil); err != nil && !errors.As(err, &e) {
			t.Skipf("SKIP: no mount namespace: %v", err)
		}
		t.Logf("%s", out)
		if err != nil {
			t.Error(err)
		}
		if bytes.Contains(out, []byte("--- SKIP")) {
			t.Skip("SKIP: see above")
		}
		return
	}
	dirOnDisk := os.Getenv("SOURCE_TEST_FULL_DISK")
	if err := syscall.Mount("none", dirOnDisk, "tmpfs", 0, "size=256k,nr_inodes=40"); err != nil {
		t.Skipf("SKIP: no tmpfs: %v", err)
	}
	defer func() { _ = syscall.Unmount(dirOnDisk, 0) }()
	var many []entry
	for i := range 60 {
		many = append(many, file("d/"+strings.Repeat("x", i+1), ""))
	}
	for _, test := range []struct {
		name, want string
		data       []byte
	}{
		{"announced", `entry "d/big": it does not fit on the disk of the work directory`, archive(t, file("d/big", strings.Repeat("x", 1<<20)))},
		{"found out", `the disk of the work directory is full; make room there`, archive(t, many...)},
	} {
		to := filepath.Join(dirOnDisk, "to")
		if err := os.Mkdir(to, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := source.Unpack(t.Context(), bytes.NewReader(test.data), to, source.Limits{})
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v", test.name, err)
		}
		if err := source.RemoveAll(to); err != nil {
			t.Error(err)
		}
	}
}
