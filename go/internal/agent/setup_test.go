package agent

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"hercules/internal/agent/setup"
	"hercules/internal/config"
	"hercules/internal/nix/nixconf"
	"hercules/internal/secrets/watch"
	"hercules/internal/testnix"
)

const acme = `{"acme": {"kind": "CachixCache", "publicKeys": ["k:1"], "authToken": "first-secret"}}`

// said is a service manager that remembers.
type said struct {
	noService
	mu    sync.Mutex
	lines []string
}

func (s *said) Status(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
}

func (s *said) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lines[len(s.lines)-1]
}

// reloading is an agent as far as reloading goes, and what it says.
func reloading(t *testing.T) (*agent, *said, *strings.Builder) {
	t.Helper()
	n := testnix.Versions(t)[0]
	nix, err := nixconf.LoadEnv(t.Context(), filepath.Join(n.Bin, "nix"), []string{"HOME=/var/empty", "NIX_CONF_DIR=/var/empty", "PATH=" + n.Bin}, nil)
	if err != nil {
		t.Fatal(err)
	}
	log, service := &strings.Builder{}, &said{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	a := &agent{
		log: logger, cfg: &config.Config{}, status: &status{service: service, ready: true, online: true},
		environment: &environment{nix: nix, secure: t.TempDir()},
	}
	first, err := setup.New(a.secure, nix, nil, caches(t, acme), []byte("machine m login l password p"))
	if err != nil {
		t.Fatal(err)
	}
	a.setups = setup.NewHolder(logger, first)
	return a, service, log
}

func good(text string) watch.File {
	return watch.File{Path: "/x/binary-caches.json", Content: []byte(text)}
}

var operator = watch.File{Path: "/etc/nix/netrc", Content: []byte("machine m login l password p")}

func netrcText(t *testing.T, s *setup.Setup) string {
	t.Helper()
	text, err := os.ReadFile(s.Netrc)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestReloadKeepsWhatTasksStartedWith(t *testing.T) {
	t.Parallel()
	a, _, log := reloading(t)
	first, release := a.setups.Take()
	firstAgain, releaseAgain := a.setups.Take()
	a.reload(good(strings.Replace(acme, "first", "other", 1)), operator)
	second, releaseSecond := a.setups.Take()
	defer releaseSecond()
	if first != firstAgain || second == first {
		t.Fatal("the next task does not get the new setup alone")
	}
	if got, want := netrcText(t, first), "machine m login l password p\nmachine acme.cachix.org login authtoken password first-secret\n"; got != want {
		t.Errorf("netrc of the first tasks: %q", got)
	}
	if got, want := netrcText(t, second), "machine m login l password p\nmachine acme.cachix.org login authtoken password other-secret\n"; got != want {
		t.Errorf("netrc of the next task: %q", got)
	}
	if second.Settings["netrc-file"] != second.Netrc || second.ProgramSettings()["netrc-file"] != second.Netrc {
		t.Errorf("settings: %v", second.Settings)
	}
	release()
	release() // once more makes no difference
	if _, err := os.Stat(first.Netrc); err != nil {
		t.Errorf("a running task lost its netrc: %v", err)
	}
	releaseAgain()
	if _, err := os.Stat(first.Netrc); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the netrc that nobody uses is left: %v", err)
	}

	// The same again, in another dress, is no change.
	a.reload(good(strings.ReplaceAll(strings.Replace(acme, "first", "other", 1), " ", "\n")), operator)
	if s, _ := a.setups.State(); s != second {
		t.Error("an equal file made another setup")
	}
	// The netrc alone.
	a.reload(good(strings.Replace(acme, "first", "other", 1)), watch.File{Path: "/etc/nix/netrc", Err: fs.ErrNotExist})
	third, releaseThird := a.setups.Take()
	if got, want := netrcText(t, third), "machine acme.cachix.org login authtoken password other-secret\n"; got != want {
		t.Errorf("netrc: %q", got)
	}
	// No credentials, no file.
	a.reload(good("{}"), watch.File{Err: fs.ErrNotExist})
	releaseThird()
	if s, _ := a.setups.State(); s.Netrc != "" || s.Settings["netrc-file"] != "" {
		t.Errorf("netrc without credentials: %+v", s)
	}
	if strings.Contains(log.String(), "-secret") {
		t.Errorf("the log shows a secret: %s", log)
	}
	a.setups.Replace(nil)
	releaseSecond()
	if left, err := os.ReadDir(a.secure); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

func TestReloadOfWrongFiles(t *testing.T) {
	t.Parallel()
	a, service, log := reloading(t)
	before, _ := a.setups.State()
	token := strings.Replace(acme, "first-secret", "white space-secret", 1)
	tests := []struct {
		name             string
		caches, operator watch.File
		want             []string
	}{
		{"not JSON", good(`{"acme"`), operator, []string{"/x/binary-caches.json"}},
		{"a field of the wrong type", good(`{"acme": {"kind": "CachixCache", "publicKeys": "k:1", "authToken": "my-secret"}}`), operator, []string{`"acme"`, "publicKeys"}},
		{"a field that is missing", good(`{"own": {"kind": "NixCache", "publicKeys": [], "signingKeys": []}}`), operator, []string{`"own"`, "storeURI"}},
		{"a signing key that is none", good(`{"acme": {"kind": "CachixCache", "publicKeys": [], "signingKeys": ["my-secret"]}}`), operator, []string{`"acme"`, "signing key"}},
		{"a token that netrc cannot hold", good(token), operator, []string{"acme.cachix.org", "white space"}},
		{"gone", watch.File{Path: "/x/binary-caches.json", Err: &fs.PathError{Op: "open", Path: "/x/binary-caches.json", Err: fs.ErrNotExist}}, operator, []string{"/x/binary-caches.json"}},
		{"a netrc that cannot be read", good(acme), watch.File{Path: "/etc/nix/netrc", Err: &fs.PathError{Op: "open", Path: "/etc/nix/netrc", Err: fs.ErrPermission}}, []string{"/etc/nix/netrc", "permission denied"}},
	}
	for _, test := range tests {
		log.Reset()
		a.reload(test.caches, test.operator)
		now, problem := a.setups.State()
		if now != before {
			t.Fatalf("%s: the last good setup is gone", test.name)
		}
		label := string(a.agentInfo().Labels["reloadError"])
		for what, text := range map[string]string{"log": log.String(), "status": service.last(), "problem": problem, "label": label} {
			for _, want := range test.want {
				if !strings.Contains(strings.ReplaceAll(text, `\"`, `"`), want) {
					t.Errorf("%s: the %s does not name %s: %s", test.name, what, want, text)
				}
			}
			if strings.Contains(text, "-secret") {
				t.Errorf("%s: the %s shows a secret: %s", test.name, what, text)
			}
		}
		// Said once, not at each look.
		log.Reset()
		a.reload(test.caches, test.operator)
		if log.Len() > 0 {
			t.Errorf("%s: said again: %s", test.name, log)
		}
		a.reload(good(acme), operator)
		if now, problem := a.setups.State(); now != before || problem != "" {
			t.Errorf("%s: after the repair: %q", test.name, problem)
		}
		if line := service.last(); line != "online; idle" || a.agentInfo().Labels["reloadError"] != nil {
			t.Errorf("%s: the status after the repair is %q", test.name, line)
		}
	}
	if left, err := os.ReadDir(a.secure); err != nil || len(left) != 1 {
		t.Errorf("left: %v %v", left, err)
	}
}

func TestBriefIsShort(t *testing.T) {
	t.Parallel()
	got := brief(errors.New("at https://me:hush@cache.example:\n\t" + strings.Repeat("é", 1000)))
	if len(got) > maxProblem+10 || strings.ContainsAny(got, "\n\t") || strings.Contains(got, "hush") || strings.ContainsRune(got, '\uFFFD') {
		t.Errorf("got %q", got)
	}
}
