//go:build !linux

package evaluator

import (
	"os/exec"
	"strconv"
	"strings"
)

// residentMemory asks ps, which answers in KiB.
func residentMemory(pid int) uint64 {
	out, err := exec.Command("ps", "-o", "rss=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return 0
	}
	kib, err := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}
