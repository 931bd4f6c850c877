package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"hercules/internal/nix/derivation"
	"hercules/internal/nix/storepath"
	"hercules/internal/proc"
)

// fetchLimit bounds the time that one cache may take for one derivation.
const fetchLimit = 5 * time.Minute

// Caches are stores to get derivations from. Each is opened by the nix program, so any kind of store will do, with the
// credentials that Nix has for it.
type Caches struct {
	// Program is nix; empty means the one of PATH.
	Program string
	// Env is the environment of Program; nil means the process's own.
	Env []string
	// Settings of Nix that are not in its configuration.
	Settings map[string]string
	// URIs of the stores, in the order in which they are asked.
	URIs []string
}

// Fetch gets the text of a derivation from the first cache that has it, without the closure. It returns nil when none
// has it. Nothing has to be signed: the path of a derivation follows from its text.
func (c Caches) Fetch(ctx context.Context, drvPath string) ([]byte, error) {
	var errs []error
	for _, uri := range c.URIs {
		text, err := c.fetch(ctx, uri, drvPath)
		if err == nil && text != nil {
			err = authentic(drvPath, text)
			if err == nil {
				return text, nil
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return nil, errors.Join(errs...)
}

// fetch asks one cache. (A daemon opened on a cache cannot read its files before Nix 2.30: NarFromPath looks into the
// file system there.)
func (c Caches) fetch(ctx context.Context, uri, drvPath string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	cmd := proc.Command(ctx, cmpOr(c.Program, "nix"), "--extra-experimental-features", "nix-command", "store", "cat", "--store", uri, drvPath)
	cmd.Env = c.environment()
	stdout, stderr := &limited{max: maxDerivation}, &limited{max: 64 << 10}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Run()
	switch said := strings.TrimSpace(ansi.ReplaceAllString(stderr.buf.String(), "")); {
	case err == nil:
		return stdout.buf.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("cache %s: %w", shown(uri), context.Cause(ctx))
	case strings.HasSuffix(said, "is not valid"), strings.HasSuffix(said, "does not exist"):
		return nil, nil
	default:
		return nil, fmt.Errorf("cache %s: %w: %s", shown(uri), err, said)
	}
}

// environment has the settings in NIX_CONFIG, where other users of the machine do not see them.
func (c Caches) environment() []string {
	env := c.Env
	if env == nil {
		env = os.Environ()
	}
	var config strings.Builder
	for _, e := range env {
		if old, ok := strings.CutPrefix(e, "NIX_CONFIG="); ok {
			config.Reset()
			config.WriteString(old + "\n")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Settings)) {
		if value := c.Settings[name]; !strings.ContainsAny(value, "#\n") {
			fmt.Fprintf(&config, "%s = %s\n", name, value)
		}
	}
	return append(slices.Clip(env), "NIX_CONFIG="+config.String())
}

// shown is a URI without what may be a secret.
func shown(uri string) string {
	if u, err := url.Parse(uri); err == nil {
		u.User, u.RawQuery = nil, ""
		return u.String()
	}
	return "with a broken URI"
}

// authentic checks that a text is that of the derivation at a path.
func authentic(drvPath string, text []byte) error {
	drv, err := derivation.Parse(text)
	if err != nil {
		return fmt.Errorf("a cache has a broken %s: %w", drvPath, err)
	}
	refs := slices.Concat(drv.InputSrcs, slices.Collect(maps.Keys(drv.InputDrvs)), slices.Collect(maps.Keys(drv.DynamicInputs)))
	slices.Sort(refs)
	got, err := storepath.MakeTextPath(storepath.Name(drvPath), string(text), slices.Compact(refs))
	if err != nil {
		return fmt.Errorf("a cache has a broken %s: %w", drvPath, err)
	}
	if got != drvPath {
		return fmt.Errorf("a cache has another text than the right one for %s; it would be %s", drvPath, got)
	}
	return nil
}
