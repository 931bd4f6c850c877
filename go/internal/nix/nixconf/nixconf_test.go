package nixconf_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/nixconf"
	"hercules/internal/testnix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// environment is one whose configuration is the given text.
func environment(t *testing.T, conf string) []string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nix.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "NIX_CONF_DIR=" + dir, "NIX_USER_CONF_FILES=", "NIX_REMOTE=dummy://"}
}

func load(t *testing.T, n testnix.Nix, env []string, extra map[string]string) *nixconf.Settings {
	t.Helper()
	s, err := nixconf.LoadEnv(t.Context(), filepath.Join(n.Bin, "nix"), env, extra)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLoad(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		env := environment(t, `
			max-jobs = 3
			builders = ssh://builder x86_64-linux ; ssh://other
			substituters = https://one.example https://two.example
			extra-trusted-public-keys = k-1:AAAA
			narinfo-cache-negative-ttl = 0
			netrc-file = /etc/some-netrc
			timeout = 77
			extra-platforms = i686-linux riscv64-linux
			system-features = kvm benchmark
			restrict-eval = true
			access-tokens = example.org=secret
			sandbox-paths = /bin/sh=/bin/busybox /opt/x?
		`)
		env = append(env, "NIX_CONFIG=cores = 5")
		s := load(t, n, env, map[string]string{"extra-substituters": "https://three.example", "connect-timeout": "9", "http2": "true"})

		for name, want := range map[string]string{
			"max-jobs": "3", "builders": "ssh://builder x86_64-linux ; ssh://other", "timeout": "77", "cores": "5",
			"substituters": "https://one.example https://two.example https://three.example", "netrc-file": "/etc/some-netrc",
			"connect-timeout": "9", "http2": "true", "keep-going": "false", "substitute": "true", "fallback": "false",
			"narinfo-cache-negative-ttl": "0",
		} {
			if got := s.Overridden()[name]; got != want {
				t.Errorf("%s is sent as %q, want %q", name, got, want)
			}
		}
		for _, name := range []string{
			"restrict-eval", "access-tokens", "experimental-features", "build-users-group", "build-hook", "store",
			"nix-path", "pure-eval", "http-connections", "min-free", "sandbox",
		} {
			if got, ok := s.Overridden()[name]; ok {
				t.Errorf("%s is sent as %q", name, got)
			}
		}
		if got, _ := s.Get("restrict-eval"); got != "true" {
			t.Errorf("restrict-eval is %q", got)
		}
		if got, _ := s.Get("access-tokens"); got != "example.org=secret" {
			t.Errorf("access-tokens is %q", got)
		}
		if got := strings.Fields(s.Overridden()["sandbox-paths"]); !slices.Contains(got, "/bin/sh=/bin/busybox") ||
			!slices.ContainsFunc(got, func(p string) bool { return strings.HasPrefix(p, "/opt/x") && strings.HasSuffix(p, "?") }) {
			t.Errorf("sandbox-paths is %q", got)
		}
		if jobs, err := s.MaxJobs(); err != nil || jobs != 3 {
			t.Errorf("max-jobs: %d, %v", jobs, err)
		}
		if ttl, err := s.NarinfoCacheNegativeTTL(); err != nil || ttl != 0 {
			t.Errorf("narinfo-cache-negative-ttl: %d, %v", ttl, err)
		}
		if got := s.Platforms(); got[0] != s.System() || !slices.Contains(got, "riscv64-linux") || !strings.Contains(s.System(), "-") {
			t.Errorf("platforms %q, system %q", got, s.System())
		}
		features := s.SystemFeatures()
		slices.Sort(features)
		if diff := cmp.Diff([]string{"benchmark", "kvm"}, features); diff != "" {
			t.Error(diff)
		}
		if got := s.TrustedPublicKeys(); !slices.Contains(got, "k-1:AAAA") || len(got) != 2 {
			t.Errorf("keys %q", got)
		}
		if got := s.NetrcFile(); got != "/etc/some-netrc" {
			t.Errorf("netrc-file %q", got)
		}
		if len(s.Substituters()) != 3 {
			t.Errorf("substituters %q", s.Substituters())
		}
		if _, ok := s.Get("no-such-setting"); ok {
			t.Error("an unknown setting is there")
		}
		if got := s.Version().Text; got != n.Version {
			t.Errorf("version %s, want %s", got, n.Version)
		}
	})
}

func TestNothingConfigured(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := load(t, n, environment(t, ""), nil)
		var names []string
		for name := range s.Overridden() {
			names = append(names, name)
		}
		slices.Sort(names)
		want := []string{"cores", "fallback", "keep-failed", "keep-going", "max-jobs", "max-silent-time", "substitute"}
		if diff := cmp.Diff(want, names); diff != "" {
			t.Error(diff)
		}
	})
}

func TestDaemonTakesTheSettings(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n))
		drv := s.Instantiate(`sh "never" { } "exit 0"`)
		settings := load(t, n, environment(t, "max-jobs = 0\nbuilders =\n"), nil)
		c, err := daemon.Dial(t.Context(), s.Endpoint(), daemon.Options{Settings: settings.Overridden()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		err = c.BuildPaths(t.Context(), []daemon.DerivedPath{{Path: drv, Outputs: []string{"*"}}}, daemon.BuildNormal)
		if err == nil || !strings.Contains(err.Error(), "unable to start any build") && !strings.Contains(err.Error(), "required system") &&
			!strings.Contains(err.Error(), "max-jobs") && !strings.Contains(strings.ToLower(err.Error()), "local builds are disabled") {
			t.Errorf("with max-jobs = 0 and no builders the build gives %v", err)
		}
	})
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	n := testnix.Versions(t)[0]
	env := environment(t, "")
	for name, value := range map[string]string{
		"include": "/etc/passwd", "a b": "1", "": "1", "cores": "1\nsandbox = false", "timeout": "1 # 2", "max-jobs": "many",
	} {
		if _, err := nixconf.LoadEnv(t.Context(), filepath.Join(n.Bin, "nix"), env, map[string]string{name: value}); err == nil {
			t.Errorf("%q = %q is taken", name, value)
		}
	}
	if _, err := nixconf.LoadEnv(t.Context(), "/nonexistent/nix", env, nil); err == nil {
		t.Error("settings without a Nix")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := nixconf.LoadEnv(ctx, filepath.Join(n.Bin, "nix"), env, nil); err == nil {
		t.Error("settings after the end of the context")
	}
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]nixconf.Version{
		"nix (Nix) 2.8.0\n":               {Major: 2, Minor: 8, Text: "2.8.0"},
		"nix (Nix) 2.34.8+1":              {Major: 2, Minor: 34, Text: "2.34.8+1"},
		"nix (Nix) 2.4pre20210601_5985b8": {Major: 2, Minor: 4, Text: "2.4pre20210601_5985b8"},
		"nix (Lix, like Nix) 2.91.1":      {Major: 2, Minor: 91, Text: "2.91.1"},
		"nix-daemon (Nix) 2.26.3":         {Major: 2, Minor: 26, Text: "2.26.3"},
	} {
		if got, err := nixconf.ParseVersion(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "nix", "nix two.three", "nix 2.x", "nix 2"} {
		if got, err := nixconf.ParseVersion(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if !(nixconf.Version{Major: 3}).AtLeast(2, 18) || (nixconf.Version{Major: 2, Minor: 8}).AtLeast(2, 18) {
		t.Error("AtLeast")
	}
}
