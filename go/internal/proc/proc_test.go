package proc_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hercules/internal/proc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a script that prints the process ids of its group, one a line, and then "ready".
func start(t *testing.T, ctx context.Context, grace time.Duration, script string) (*exec.Cmd, []int) {
	t.Helper()
	cmd := proc.CommandGrace(ctx, grace, "sh", "-c", script)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	sc := bufio.NewScanner(out)
	for sc.Scan() && sc.Text() != "ready" {
		pid, err := strconv.Atoi(sc.Text())
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return cmd, pids
}

func running(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return syscall.Kill(pid, 0) == nil && !errors.Is(err, os.ErrNotExist)
	}
	// A zombie that nobody has collected yet is as good as gone.
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func TestCancelEndsTheWholeGroup(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		grace  time.Duration
		script string
	}{
		"term is enough":      {time.Minute, `sleep 1000 & echo $!; echo $$; echo ready; wait`},
		"term is ignored":     {50 * time.Millisecond, `trap "" TERM; sleep 1000 & echo $!; echo $$; echo ready; wait`},
		"only the child does": {50 * time.Millisecond, `(trap "" TERM; exec sleep 1000) & echo $!; echo ready; wait`},
		"kill at once":        {0, `trap "" TERM; sleep 1000 & echo $!; echo $$; echo ready; wait`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			cmd, pids := start(t, ctx, c.grace, c.script)
			if len(pids) == 0 {
				t.Fatal("the script printed no process id")
			}
			cancel()
			if err := cmd.Wait(); err == nil {
				t.Error("Wait returned no error for a cancelled program")
			}
			for _, pid := range pids {
				for deadline := time.Now().Add(10 * time.Second); running(pid); time.Sleep(time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("process %d outlived the group", pid)
					}
				}
			}
		})
	}
}

func TestTermIsTriedFirst(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cmd, _ := start(t, ctx, time.Minute, `trap "exit 7" TERM; echo ready; while :; do sleep 0.01; done`)
	cancel()
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 7 {
		t.Errorf("exit status %d, want the 7 of the trap", got)
	}
}

func TestReapKillsWhatIsLeft(t *testing.T) {
	t.Parallel()
	cmd, pids := start(t, t.Context(), time.Minute, `sleep 1000 >/dev/null 2>&1 & echo $!; echo ready`)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if !running(pids[0]) {
		t.Fatal("the child is gone before Reap: the test shows nothing")
	}
	if err := proc.Reap(cmd); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); running(pids[0]); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the child outlived Reap")
		}
	}
	if err := proc.Reap(cmd); err != nil {
		t.Errorf("second Reap: %v", err)
	}
	if err := proc.Reap(&exec.Cmd{}); err != nil {
		t.Errorf("Reap of a program that was never started: %v", err)
	}
}

func TestRaiseFileLimitReachesChildren(t *testing.T) {
	limit, err := proc.RaiseFileLimit()
	if limit == 0 {
		t.Fatal(err)
	}
	out, err := proc.Command(t.Context(), "sh", "-c", "ulimit -n").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != "unlimited" && got != strconv.FormatUint(limit, 10) {
		t.Errorf("a child has %s open files, want %d", got, limit)
	}
}

func TestStandardInputIsNull(t *testing.T) {
	t.Parallel()
	cmd := proc.Command(t.Context(), "cat")
	out, err := cmd.Output()
	if err != nil || len(out) != 0 {
		t.Errorf("got %q, %v", out, err)
	}
}
