package logging

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/term"
)

// StyleOf finds the style for what stands behind f. JOURNAL_STREAM is inherited by programs whose output has been
// sent elsewhere, so it counts only where it names the very stream: "device:inode" (systemd.exec).
func StyleOf(f *os.File, getenv func(string) string) Style {
	if stream := getenv("JOURNAL_STREAM"); stream != "" {
		if st, err := f.Stat(); err == nil {
			if sys, ok := st.Sys().(*syscall.Stat_t); ok && stream == fmt.Sprintf("%d:%d", sys.Dev, sys.Ino) {
				return Journal
			}
		}
	}
	if term.IsTerminal(int(f.Fd())) && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" {
		return Terminal
	}
	return Plain
}
