// Package nixconf finds out the Nix settings that count for this user: those of nix.conf, of the user's own
// nix.conf and of NIX_CONFIG, as the installed Nix reads them.
//
// It asks Nix instead of reading the files, so includes, defaults and "extra-" settings are as Nix has them. It does
// not know what the settings are used for.
package nixconf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"hercules/internal/proc"
)

// loadLimit bounds how long Nix may take to say its settings. It needs some 20 ms.
const loadLimit = time.Minute

// Settings are effective settings, as texts in the form of nix.conf.
type Settings struct {
	version Version
	values  map[string]string
	forward map[string]string
}

// Load asks program (a "nix"; empty means the one of PATH) for the settings of this process's user and environment,
// with extra on top. Names in extra may begin with "extra-", as in nix.conf.
func Load(ctx context.Context, program string, extra map[string]string) (*Settings, error) {
	return LoadEnv(ctx, program, os.Environ(), extra)
}

// LoadEnv is [Load] with an environment.
func LoadEnv(ctx context.Context, program string, env []string, extra map[string]string) (*Settings, error) {
	if program == "" {
		program = "nix"
	}
	ctx, cancel := context.WithTimeout(ctx, loadLimit)
	defer cancel()
	lines, err := configLines(extra)
	if err != nil {
		return nil, err
	}
	version, err := ProgramVersion(ctx, program)
	if err != nil {
		return nil, err
	}

	var effective, plain map[string]setting
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		old := lookup(env, "NIX_CONFIG")
		effective, err = show(gctx, program, version, append(slices.Clip(env), "NIX_CONFIG="+old+"\n"+lines))
		return err
	})
	g.Go(func() (err error) {
		plain, err = show(gctx, program, version, append(slices.Clip(env),
			"NIX_CONFIG=", "NIX_USER_CONF_FILES=", "NIX_CONF_DIR=/var/empty/no-nix-conf"))
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}

	s := &Settings{version: version, values: map[string]string{}, forward: map[string]string{}}
	said := saidNames(extra, effective)
	for name, e := range effective {
		text, err := e.text()
		if err != nil {
			return nil, fmt.Errorf("setting %s of %s: %w", name, program, err)
		}
		s.values[name] = text
		if !forwarded(name) {
			continue
		}
		if said[name] || slices.Contains(always, name) || !e.isDefault(text) && !plain[name].is(text) {
			s.forward[name] = text
		}
	}
	return s, nil
}

// always are the settings that have a field of their own in SetOptions: Nix sends them in any case.
var always = []string{"cores", "fallback", "keep-failed", "keep-going", "max-jobs", "max-silent-time", "substitute"}

// saidNames are the names that extra sets, as the settings are called today.
func saidNames(extra map[string]string, known map[string]setting) map[string]bool {
	said := map[string]bool{}
	for name := range extra {
		name = strings.TrimPrefix(name, "extra-")
		said[name] = true
		for canonical, k := range known {
			if slices.Contains(k.Aliases, name) {
				said[canonical] = true
			}
		}
	}
	return said
}

// configLines writes settings as NIX_CONFIG has them. The environment, unlike arguments, is not for others to see.
func configLines(settings map[string]string) (string, error) {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		value := settings[name]
		if err := checkName(name); err != nil {
			return "", err
		}
		if strings.ContainsAny(value, "#\n\r\x00") {
			return "", fmt.Errorf("nix setting %s: the value cannot have a line break or '#', as in nix.conf", name)
		}
		fmt.Fprintf(&b, "%s = %s\n", name, value)
	}
	return b.String(), nil
}

// checkName keeps out "include", and what would be several words.
func checkName(name string) error {
	ok := name != "" && name != "include" && name != "!include"
	for _, c := range name {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_')
	}
	if !ok {
		return fmt.Errorf("%q is not the name of a Nix setting", name)
	}
	return nil
}

func lookup(env []string, name string) string {
	for _, e := range slices.Backward(env) {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

// show runs nix show-config, which is called nix config show since 2.18.
func show(ctx context.Context, program string, v Version, env []string) (map[string]setting, error) {
	args := []string{"--extra-experimental-features", "nix-command", "show-config", "--json"}
	if v.AtLeast(2, 18) {
		args = []string{"--extra-experimental-features", "nix-command", "config", "show", "--json"}
	}
	var stdout, stderr bytes.Buffer
	cmd := proc.Command(ctx, program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, explain(ctx, program, "its settings", err, stderr.String())
	}
	var all map[string]setting
	if err := json.Unmarshal(stdout.Bytes(), &all); err != nil {
		return nil, fmt.Errorf("settings of %s: %w", program, err)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("settings of %s: there are none", program)
	}
	return all, nil
}

func explain(ctx context.Context, program, what string, err error, stderr string) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if text := strings.TrimSpace(stderr); text != "" {
		return fmt.Errorf("asking %s for %s: %w: %s", program, what, err, text)
	}
	return fmt.Errorf("asking %s for %s: %w", program, what, err)
}

// Version of the Nix that was asked.
func (s *Settings) Version() Version { return s.version }

// Get gives a setting in the form of nix.conf; ok is false when this Nix does not have it.
func (s *Settings) Get(name string) (value string, ok bool) {
	value, ok = s.values[name]
	return value, ok
}

// List gives a setting that is a list of words.
func (s *Settings) List(name string) []string { return strings.Fields(s.values[name]) }

// Int gives a setting that is a number.
func (s *Settings) Int(name string) (int64, error) {
	value, ok := s.values[name]
	if !ok {
		return 0, errors.New("this Nix has no setting " + name)
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("nix setting %s: %q is not a number", name, value)
	}
	return n, nil
}

// Bool tells whether a setting is "true".
func (s *Settings) Bool(name string) bool { return s.values[name] == "true" }

// Overridden gives the settings to send to the daemon, so that this user's configuration counts there as it does
// for Nix's own programs. The caller owns the map.
//
// Nix sends those that are set anywhere at all, and seven (max-jobs, cores …) always. It does not say which are set,
// so sent is what differs from the default and from what Nix has without any configuration, which is not always the
// same: some defaults are computed when it starts, others name the directory of nix.conf. A setting that is set to its
// default while the daemon's configuration says otherwise is therefore not sent, unless extra has it.
func (s *Settings) Overridden() map[string]string { return maps.Clone(s.forward) }

// System is the platform of this machine, such as "x86_64-linux".
func (s *Settings) System() string { return s.values["system"] }

// Platforms are the platforms that this machine can build for: its own and extra-platforms.
func (s *Settings) Platforms() []string {
	platforms := []string{s.System()}
	for _, p := range s.List("extra-platforms") {
		if !slices.Contains(platforms, p) {
			platforms = append(platforms, p)
		}
	}
	return platforms
}

// SystemFeatures are the features of this machine, such as "kvm".
func (s *Settings) SystemFeatures() []string { return s.List("system-features") }

// Substituters are the caches to substitute from.
func (s *Settings) Substituters() []string { return s.List("substituters") }

// TrustedPublicKeys are the keys whose signatures count.
func (s *Settings) TrustedPublicKeys() []string { return s.List("trusted-public-keys") }

// NetrcFile is the file with the credentials for HTTP.
func (s *Settings) NetrcFile() string { return s.values["netrc-file"] }

// NarinfoCacheNegativeTTL is how many seconds Nix remembers that a cache does not have a path.
func (s *Settings) NarinfoCacheNegativeTTL() (int64, error) {
	return s.Int("narinfo-cache-negative-ttl")
}

// MaxJobs is how many builds the daemon runs at once for this user.
func (s *Settings) MaxJobs() (int64, error) { return s.Int("max-jobs") }
