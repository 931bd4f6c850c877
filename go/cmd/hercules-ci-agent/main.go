// Command hercules-ci-agent takes tasks from a coordinator and does them with the Nix of this machine. This package is
// its command line and nothing else.
//
// Exit status: 0 after --help, --version, a good --test-configuration, and when the agent was asked to stop; 1 for
// wrong usage, a wrong configuration, and whatever else keeps the agent from starting.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"hercules/internal/agent"
	"hercules/internal/config"
	"hercules/internal/logging"
	"hercules/internal/version"
)

const name = "hercules-ci-agent"

const usage = name + ` %s

Usage: ` + name + ` --config FILE [--test-configuration]

  --config FILE           the configuration, JSON when the name ends in .json and TOML otherwise
  --test-configuration    do what is done at start, ask the service for its addresses, and end
  --version               print the version
  -h, --help              print this

The agent runs until SIGTERM or SIGINT, which lets tasks finish for the time of the setting drainTimeoutSeconds; a
second signal ends it at once. It takes over changes of the binary caches and of the netrc file by itself, and looks
at once when it gets SIGHUP.
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout io.Writer, stderr *os.File) int {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	path := flags.String("config", "", "")
	test := flags.Bool("test-configuration", false, "")
	showVersion := flags.Bool("version", false, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, usage, version.Version)
		return 0
	case err != nil:
	case *showVersion:
		fmt.Fprintln(stdout, name, version.Version)
		return 0
	case flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case *path == "":
		err = errors.New("--config FILE is missing")
	}
	if err != nil {
		complain(stderr, fmt.Errorf("%w\ntry %s --help", err, name))
		return 1
	}

	cfg, err := config.Load(*path)
	if err != nil {
		complain(stderr, err)
		return 1
	}
	if err := start(cfg, *test, stderr); err != nil {
		complain(stderr, err)
		return 1
	}
	if *test {
		fmt.Fprintln(stdout, name+": the configuration is good")
	}
	return 0
}

func start(cfg *config.Config, test bool, stderr *os.File) error {
	level, err := logging.ParseLevel(cfg.LogLevel)
	if err != nil {
		return err
	}
	log := logging.New(stderr, level, logging.StyleOf(stderr, os.Getenv))
	slog.SetDefault(log)
	if !test {
		return agent.Serve(context.Background(), cfg, log)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return agent.Check(ctx, cfg, agent.Options{Log: log})
}

// complain writes an error for people, a line at a time, with the priority of an error where the journal reads it.
func complain(stderr *os.File, err error) {
	priority := ""
	if logging.StyleOf(stderr, os.Getenv) == logging.Journal {
		priority = "<3>"
	}
	for line := range strings.Lines(logging.Redact(err.Error()) + "\n") {
		fmt.Fprintf(stderr, "%s%s: %s", priority, name, line)
	}
}
