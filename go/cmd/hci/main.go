// Command hci runs the continuous integration of a Nix project from the command line.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"hercules/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the command ends in order; the second ends the program at once.
	context.AfterFunc(ctx, stop)
	status := cli.Main(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(status)
}
