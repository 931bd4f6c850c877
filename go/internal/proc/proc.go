// Package proc starts programs so that they can be stopped: each in its own process group, with everything that it
// started. It is a leaf and does not know which programs these are.
package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const (
	// Grace is how long a program started with Command has to end after SIGTERM before its group is killed.
	Grace = 5 * time.Second
	// pipeDelay bounds the wait for the pipes of a program that is gone: something that left the process group
	// may still hold them open.
	pipeDelay = 2 * time.Second
)

// Command is exec.CommandContext for a program that may start others. When ctx ends, the whole process group gets
// SIGTERM and, if any of it is left after Grace, SIGKILL; Wait returns when the group is gone. Standard input is
// the null device unless the caller sets another.
func Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return CommandGrace(ctx, Grace, name, args...)
}

// CommandGrace is Command with another time between SIGTERM and SIGKILL. Zero kills at once.
func CommandGrace(ctx context.Context, grace time.Duration, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = pipeDelay
	// Wait does not return before Cancel has, so the escalation needs no goroutine of its own, and the id of the
	// group cannot belong to somebody else in the meantime for longer than one poll.
	cmd.Cancel = func() error { return stopGroup(cmd.Process.Pid, grace) }
	return cmd
}

// Reap kills what a program has left of its process group. Call it after Wait, for programs that may leave
// background processes behind. A group that is gone is no error.
func Reap(cmd *exec.Cmd) error {
	if cmd.Process == nil {
		return nil
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil && !gone(err) {
		return os.NewSyscallError("kill process group", err)
	}
	return nil
}

func stopGroup(pid int, grace time.Duration) error {
	first := syscall.SIGTERM
	if grace <= 0 {
		first = syscall.SIGKILL
	}
	if err := syscall.Kill(-pid, first); err != nil {
		if gone(err) {
			return os.ErrProcessDone // Wait then reports the status of the program, not the end of ctx.
		}
		return os.NewSyscallError("kill process group", err)
	}
	if grace <= 0 {
		return nil
	}
	deadline := time.Now().Add(grace)
	for pause := time.Millisecond; time.Now().Before(deadline); pause = min(2*pause, 50*time.Millisecond) {
		time.Sleep(pause)
		if syscall.Kill(-pid, 0) != nil {
			return nil
		}
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	return nil
}

// gone: darwin answers EPERM for a group that consists of zombies only.
func gone(err error) bool {
	return errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EPERM)
}
