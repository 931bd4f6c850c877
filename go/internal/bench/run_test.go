//go:build bench

package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hercules/internal/testnix"
)

// programs builds the programs as they are shipped, and gives their directory.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", dir, "hercules/cmd/...").CombinedOutput()
	if err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	return dir
}

// run is what a run of hci told.
type run struct {
	// first and last event of each name, as times since the start of the process.
	first, last map[string]time.Duration
	counts      map[string]int
	peakKiB     uint64
}

// hci runs `hci run --json` and reads its events.
func hci(t *testing.T, bin string, store *testnix.Store, args ...string) *run {
	t.Helper()
	cmd := store.Command(filepath.Join(bin, "hci"), append([]string{"run", "--json"}, args...)...)
	cmd.Env = append(cmd.Env, "XDG_STATE_HOME="+t.TempDir())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r := &run{first: map[string]time.Duration{}, last: map[string]time.Duration{}, counts: map[string]int{}}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scanner := bufio.NewScanner(stdout)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		var e struct {
			Event string    `json:"event"`
			Time  time.Time `json:"time"`
		}
		if err := json.Unmarshal(scanner.Bytes(), &e); err != nil {
			t.Fatalf("event %q: %v", scanner.Text(), err)
		}
		at := e.Time.Sub(start)
		if r.counts[e.Event]++; r.counts[e.Event] == 1 {
			r.first[e.Event] = at
		}
		r.last[e.Event] = at
		if e.Event == "job-finished" {
			r.peakKiB = memory(t, cmd.Process.Pid, "VmHWM")
		}
	}
	err = cmd.Wait()
	if err != nil || scanner.Err() != nil {
		t.Fatalf("hci run: %v %v\n%s", err, scanner.Err(), stderr.String())
	}
	return r
}

// want ends the test unless there were n events of a name.
func (r *run) want(t *testing.T, event string, n int) {
	t.Helper()
	if r.counts[event] != n {
		t.Fatalf("%d events %s, want %d", r.counts[event], event, n)
	}
}

// between is the time from the first event of one name to the last of another.
func (r *run) between(from, to string) time.Duration { return r.last[to] - r.first[from] }

// memory reads a line of a process's status in KiB: VmRSS is what is resident, VmHWM the most that ever was. Children
// are not in it.
func memory(t *testing.T, pid int, name string) uint64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s of process %d", name, pid)
	return 0
}
