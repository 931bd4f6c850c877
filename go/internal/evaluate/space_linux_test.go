package evaluate_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hercules/internal/testnix"
)

// A full disk in the work directory ends the task with a reason, and nothing stays on the disk.
func TestFullDisk(t *testing.T) {
	const variable = "EVALUATE_TEST_FULL_DISK"
	if os.Getenv(variable) == "" {
		// In a mount namespace of its own, so that nothing stays mounted.
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.run=^TestFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), variable+"="+t.TempDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if e := (*exec.ExitError)(nil); err != nil && !errors.As(err, &e) {
			t.Skipf("SKIP: no mount namespace: %v", err)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		if strings.Contains(string(out), "--- SKIP") {
			t.Skipf("SKIP: in a mount namespace: %s", out)
		}
		return
	}
	disk := os.Getenv(variable)
	if err := syscall.Mount("none", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("SKIP: no tmpfs: %v", err)
	}
	defer func() { _ = syscall.Unmount(disk, 0) }()
	j := newJob(t, testnix.Versions(t)[0], "default.nix", "{ }", "large", strings.Repeat("x", 4<<20))
	j.work = filepath.Join(disk, "work")
	j.deps.WorkDirectory = j.work
	got := exceptional(j.run())
	if !strings.Contains(got, `entry "widgets-3f9b0c4d/large": it does not fit on the disk of the work directory`) {
		t.Errorf("got %q", got)
	}
	// With less in it the same directory does.
	j.co.files["src"] = tarball(t, "default.nix", "{ }")
	j.successful(j.run())
}
