package daemon

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
)

// Options of a connection.
type Options struct {
	// Settings are sent to the daemon when the connection opens and replace its own for this connection, as far as it
	// trusts this user. The daemon takes max-jobs, cores, keep-failed, keep-going, fallback, max-silent-time and
	// substitute from every client; when they are not here, Nix's defaults are sent.
	Settings map[string]string
	// Verbosity of the messages that the daemon sends. Build output and activities are sent at any.
	Verbosity Verbosity
	// Log gets the daemon's messages, in order, on the goroutine of the operation or one that it waits for. Nil
	// discards them.
	Log func(Event)
}

// clientOptions is the argument of SetOptions (remote-store.cc, setOptions).
type clientOptions struct {
	keepFailed, keepGoing, tryFallback bool
	verbosity                          uint64
	maxBuildJobs                       uint64
	maxSilentTime                      uint64
	useBuildHook                       uint64
	buildVerbosity                     uint64
	logType, printBuildTrace           uint64 // obsolete
	buildCores                         uint64
	useSubstitutes                     bool
	overrides                          map[string]string
}

// notForwarded are settings that say something of the client only; Nix does not send them either.
var notForwarded = []string{"experimental-features", "plugin-files", "show-trace", "use-xdg-base-directories"}

// settingAliases are the older names of the settings that have a field of their own.
var settingAliases = map[string]string{
	"build-max-jobs":        "max-jobs",
	"build-cores":           "cores",
	"build-max-silent-time": "max-silent-time",
	"build-fallback":        "fallback",
	"build-use-substitutes": "substitute",
	"use-substitutes":       "substitute",
}

func newClientOptions(o Options) (*clientOptions, error) {
	c := &clientOptions{
		verbosity:      uint64(max(o.Verbosity, Error)),
		maxBuildJobs:   1,
		useBuildHook:   1,
		useSubstitutes: true,
		overrides:      map[string]string{},
	}
	if err := c.apply(o.Settings); err != nil {
		return nil, err
	}
	return c, nil
}

// apply puts settings on top.
func (c *clientOptions) apply(settings map[string]string) error {
	for name, value := range settings {
		if err := c.set(name, value); err != nil {
			return fmt.Errorf("the Nix setting %s = %q: %w", name, value, err)
		}
	}
	return nil
}

func (c *clientOptions) set(name, value string) (err error) {
	if canonical, ok := settingAliases[name]; ok {
		name = canonical
	}
	switch name {
	case "keep-failed":
		c.keepFailed, err = parseBool(value)
	case "keep-going":
		c.keepGoing, err = parseBool(value)
	case "fallback":
		c.tryFallback, err = parseBool(value)
	case "substitute":
		c.useSubstitutes, err = parseBool(value)
	case "max-silent-time":
		c.maxSilentTime, err = parseUint(value)
	case "cores":
		c.buildCores, err = parseUint(value)
	case "max-jobs":
		if value == "auto" {
			c.maxBuildJobs = uint64(runtime.NumCPU())
		} else {
			c.maxBuildJobs, err = parseUint(value)
		}
	default:
		if !slices.Contains(notForwarded, name) {
			c.overrides[name] = value
		}
	}
	return err
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true", "yes", "1":
		return true, nil
	case "false", "no", "0":
		return false, nil
	}
	return false, fmt.Errorf("not a Boolean")
}

// parseUint accepts what fits the unsigned int that the daemon keeps it in.
func parseUint(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("not a number from 0 to 2^32-1")
	}
	return n, nil
}

func (w *writer) clientOptions(c *clientOptions) {
	w.bool(c.keepFailed)
	w.bool(c.keepGoing)
	w.bool(c.tryFallback)
	w.uint(c.verbosity)
	w.uint(c.maxBuildJobs)
	w.uint(c.maxSilentTime)
	w.uint(c.useBuildHook)
	w.uint(c.buildVerbosity)
	w.uint(c.logType)
	w.uint(c.printBuildTrace)
	w.uint(c.buildCores)
	w.bool(c.useSubstitutes)
	w.stringMap(c.overrides)
}

func (r *reader) clientOptions() *clientOptions {
	return &clientOptions{
		keepFailed:      r.bool(),
		keepGoing:       r.bool(),
		tryFallback:     r.bool(),
		verbosity:       r.uint(),
		maxBuildJobs:    r.uint(),
		maxSilentTime:   r.uint(),
		useBuildHook:    r.uint(),
		buildVerbosity:  r.uint(),
		logType:         r.uint(),
		printBuildTrace: r.uint(),
		buildCores:      r.uint(),
		useSubstitutes:  r.bool(),
		overrides:       r.stringMap(),
	}
}
