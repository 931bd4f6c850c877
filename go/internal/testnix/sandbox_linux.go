package testnix

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// sandboxPossible tells why this user cannot have a build sandbox, which a chroot store needs.
var sandboxPossible = sync.OnceValue(func() error {
	if os.Geteuid() == 0 {
		return nil
	}
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("no user namespaces for user %d: %w", os.Geteuid(), err)
	}
	return nil
})
