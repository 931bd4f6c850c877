// Package cli holds the commands of hci.
//
// A command parses its flags, calls the package that does the work, and shows the result: text for people on a
// terminal or in a log file, one JSON document a line for scripts. It must not decide anything about jobs.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"hercules/internal/version"
)

// The exit statuses of hci.
const (
	exitOK          = 0
	exitFailed      = 1   // the work was done, and something in it failed
	exitUsage       = 2   // wrong usage, or the work could not be set up
	exitInterrupted = 130 // interrupted by a signal, as shells report it
)

// Streams are the standard streams of a command.
type Streams struct {
	In       io.Reader
	Out, Err *os.File
}

// statusError ends the program with a status other than exitUsage. A nil err prints nothing: all was said already.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// Main runs the command line args (without the program's name) and returns the exit status. The first
// cancellation of ctx asks the command to stop in order.
func Main(ctx context.Context, args []string, streams Streams) int {
	root := rootCommand(streams)
	root.SetArgs(args)
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	status := exitUsage
	if coded, ok := errors.AsType[*statusError](err); ok {
		status, err = coded.status, coded.err
	}
	if err != nil {
		fmt.Fprintf(streams.Err, "hci: error: %v\n", err)
	}
	return status
}

func rootCommand(streams Streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "hci",
		Short: "Continuous integration for Nix, from your own machine",
		Long: `hci runs the continuous integration of a Nix project on your own machine, with your own Nix.

  hci run            evaluate and build all that the checkout in this directory asks for
  hci cache check    find out whether an agent could use its binary caches

Exit status: 0 all good, 1 something failed, 2 wrong usage or set-up, 130 interrupted.`,
		Version:       version.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.Help(); err != nil {
				return err
			}
			// As the program that this one replaces: no command is no success.
			return &statusError{status: exitFailed}
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; %s --help says more", err, cmd.CommandPath())
	})
	root.SetVersionTemplate("hci {{.Version}}\n")
	root.AddCommand(runCommand(streams), cacheCommand(streams), versionCommand(streams))
	return root
}

func versionCommand(streams Streams) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(streams.Out, "hci %s\n", version.Version)
			return err
		},
	}
}
