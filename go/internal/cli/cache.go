package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hercules/internal/cli/cachecheck"
	"hercules/internal/cli/term"
	"hercules/internal/config"
	"hercules/internal/secrets"
)

func cacheCommand(streams Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Look after binary caches",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(cacheCheckCommand(streams))
	return cmd
}

// checkOptions are the flags of hci cache check.
type checkOptions struct {
	config, file string
	json         bool
	noUpload     bool
	nix          string
	settings     []string
}

func cacheCheckCommand(streams Streams) *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check [NAME]…",
		Short: "Find out whether an agent could use its binary caches",
		Long: `Find out whether an agent could use the binary caches of its binary-caches.json, or those with the given names:
whether they can be reached, read and written, with which key, and whether the Nix daemon accepts what they give.

Run it as the user of the agent, on its machine. To caches that can be pushed to, two store paths of some hundred
bytes are uploaded; they are read back and substituted.

Exit status: 0 when nothing failed, 1 when something did, 2 for wrong usage or when nothing could be checked.`,
		Example: `  sudo -u hercules-ci-agent hci cache check --config /etc/hercules-ci-agent/agent.toml
  hci cache check --file binary-caches.json my-cache`,
		RunE: func(cmd *cobra.Command, args []string) error { return cacheCheck(cmd.Context(), args, &o, streams) },
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "the agent's configuration `FILE`, which says where binary-caches.json is and sets Nix settings")
	f.StringVar(&o.file, "file", "", "the binary-caches.json itself")
	f.BoolVar(&o.json, "json", false, "write one JSON document to standard output")
	f.BoolVar(&o.noUpload, "no-upload", false, "upload nothing")
	f.StringVar(&o.nix, "nix", "nix", "the nix `PROGRAM` to check with")
	f.StringArrayVar(&o.settings, "option", nil, "`NAME=VALUE`: set a Nix setting (repeatable)")
	cmd.MarkFlagsOneRequired("config", "file")
	return cmd
}

func cacheCheck(ctx context.Context, names []string, o *checkOptions, streams Streams) error {
	settings, err := parsePairs("--option", o.settings)
	if err != nil {
		return err
	}
	run := cachecheck.Options{NixProgram: o.nix, NixSettings: map[string]string{}, Upload: !o.noUpload, User: userName()}
	file := o.file
	if o.config != "" {
		cfg, err := config.Load(o.config)
		if err != nil {
			return err
		}
		run.Declared = &cfg.NixUserIsTrusted
		for name, value := range cfg.NixSettings {
			run.NixSettings[name] = value
		}
		if file == "" {
			file = cfg.BinaryCachesPath
		}
	}
	for name, value := range settings {
		run.NixSettings[name] = value
	}
	caches, err := secrets.ReadBinaryCaches(file)
	if err != nil {
		return err
	}
	if run.Caches, err = selectCaches(caches.Caches, names, file); err != nil {
		return err
	}
	if o.json {
		return cacheCheckJSON(ctx, run, caches.Warnings, streams)
	}
	screen := term.New(streams.Out)
	for _, w := range caches.Warnings {
		_ = screen.Println(line(screen, cachecheck.Check{Result: cachecheck.Warn, Check: "file", Message: w}, 0))
	}
	width := 0
	for _, c := range run.Caches {
		width = max(width, len(c.Name))
	}
	run.Emit = func(c cachecheck.Check) { _ = screen.Println(line(screen, c, width)) }
	advice, good, err := cachecheck.Run(ctx, run)
	if err != nil {
		return interrupted(ctx, err)
	}
	printAdvice(screen, advice)
	if !good {
		return &statusError{status: exitFailed}
	}
	return nil
}

// interrupted gives the end of a command that was stopped by a signal its status.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return &statusError{status: exitInterrupted}
	}
	return err
}

func selectCaches(all []secrets.BinaryCache, names []string, file string) ([]secrets.BinaryCache, error) {
	if len(names) == 0 {
		return all, nil
	}
	var selected []secrets.BinaryCache
	for _, name := range names {
		i := slices.IndexFunc(all, func(c secrets.BinaryCache) bool { return c.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("%s has no cache %q", file, name)
		}
		selected = append(selected, all[i])
	}
	return selected, nil
}

var resultStyles = map[cachecheck.Result]term.Style{
	cachecheck.OK: term.Green, cachecheck.Warn: term.Yellow, cachecheck.Fail: term.Red, cachecheck.Skip: term.Dim,
}

// line shows a check: its result, the cache, what was looked at and what came of it.
func line(s *term.Screen, c cachecheck.Check, width int) string {
	return fmt.Sprintf("%s  %-*s  %-12s  %s", s.Paint(resultStyles[c.Result], fmt.Sprintf("%-4s", c.Result)),
		width, or(c.Cache, "-"), c.Check, s.Clean(c.Message))
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func printAdvice(s *term.Screen, a *cachecheck.Advice) {
	show := func(head string, lines []string) {
		if len(lines) == 0 {
			return
		}
		_ = s.Println("", head)
		for _, l := range lines {
			_ = s.Println("    " + s.Clean(l))
		}
	}
	show("Add to /etc/nix/nix.conf, and restart the daemon (systemctl restart nix-daemon):", a.NixConf())
	show("or, on NixOS and with nix-darwin, to the configuration:", a.NixOS())
	show("If the user is not to be trusted, which gives it the rights of root in the store, these do instead of trusted-users:", a.Untrusting())
}

func cacheCheckJSON(ctx context.Context, run cachecheck.Options, warnings []string, streams Streams) error {
	type advice struct {
		NixConf    []string `json:"nixConf"`
		NixOS      []string `json:"nixos"`
		Untrusting []string `json:"nixConfWithoutTrust"`
	}
	document := struct {
		OK       bool               `json:"ok"`
		Checks   []cachecheck.Check `json:"checks"`
		Warnings []string           `json:"warnings"`
		Add      advice             `json:"add"`
	}{Checks: []cachecheck.Check{}, Warnings: append([]string{}, warnings...)}
	run.Emit = func(c cachecheck.Check) { document.Checks = append(document.Checks, c) }
	a, good, err := cachecheck.Run(ctx, run)
	if err != nil {
		return interrupted(ctx, err)
	}
	document.OK = good
	document.Add = advice{
		NixConf: append([]string{}, a.NixConf()...), NixOS: append([]string{}, a.NixOS()...), Untrusting: append([]string{}, a.Untrusting()...),
	}
	e := json.NewEncoder(streams.Out)
	e.SetEscapeHTML(false)
	if err := e.Encode(&document); err != nil {
		return err
	}
	if !good {
		return &statusError{status: exitFailed}
	}
	return nil
}

// userName is who runs this, for advice.
func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return or(os.Getenv("USER"), strings.TrimSpace(fmt.Sprint(os.Getuid())))
}
