package cachecheck

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nix-community/go-nix/pkg/nar"
	"github.com/nix-community/go-nix/pkg/nixbase32"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/storepath"
	"hercules/internal/secrets"
)

// probe is a store path that nobody else has. It is not content-addressed, so that its signature counts.
type probe struct {
	info *daemon.PathInfo
	nar  []byte
}

func newProbe() *probe {
	text := "hci cache check " + time.Now().UTC().Format(time.RFC3339) + " " + rand.Text() + "\n"
	var b bytes.Buffer
	w, err := nar.NewWriter(&b)
	if err == nil {
		err = w.WriteHeader(&nar.Header{Path: "/", Type: nar.TypeRegular, Size: int64(len(text))})
	}
	if err == nil {
		_, err = w.Write([]byte(text))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // It is written to memory.
	}
	hash := sha256.Sum256(b.Bytes())
	random := make([]byte, 20)
	_, _ = rand.Read(random)
	return &probe{nar: b.Bytes(), info: &daemon.PathInfo{
		Path:    storepath.StoreDir + "/" + nixbase32.EncodeToString(random) + "-hci-cache-check",
		NarHash: hash[:], NarSize: uint64(b.Len()),
	}}
}

// privateStore is an empty store in a directory of its own, with a daemon process for each connection.
type privateStore struct{ endpoint daemon.Endpoint }

func (c *checker) newStore(name string) (*privateStore, error) {
	root, err := os.MkdirTemp(c.dir, name+"-")
	if err != nil {
		return nil, err
	}
	return &privateStore{daemon.Endpoint{
		Command: []string{c.program("nix-daemon"), "--stdio"}, Env: c.privateEnv("local?root=" + root), Root: root,
	}}, nil
}

// privateEnv is the environment of a Nix program that must leave no trace, in files or in what it remembers of caches.
// Its store takes paths without signatures; a store reads this setting when it is opened, before a client can set it.
func (c *checker) privateEnv(remote string) []string {
	drop := []string{"NIX_REMOTE", "XDG_CACHE_HOME", "NIX_STATE_DIR", "NIX_STORE_DIR", "NIX_LOG_DIR", "NIX_DAEMON_SOCKET_PATH", "NIX_CONFIG"}
	env := slices.DeleteFunc(slices.Clone(c.Env), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return slices.Contains(drop, name)
	})
	return append(env, "NIX_REMOTE="+remote, "XDG_CACHE_HOME="+filepath.Join(c.dir, "cache"), "NIX_CONFIG="+c.getenv("NIX_CONFIG")+"\nbuild-users-group =\nnarinfo-cache-negative-ttl = 0\nrequire-sigs = false\n")
}

func (s *privateStore) add(ctx context.Context, p *probe) error {
	conn, err := daemon.Dial(ctx, s.endpoint, daemon.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return conn.AddToStoreNar(ctx, p.info, bytes.NewReader(p.nar), daemon.AddOptions{DontCheckSignatures: true})
}

// messages keeps what a daemon warns of.
type messages struct {
	mu    sync.Mutex
	lines []string
}

func (m *messages) log(e daemon.Event) {
	if e.Kind != daemon.EventMessage || e.Level > daemon.Warn {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if line := strings.TrimSpace(plain(e.Text)); line != "" && len(m.lines) < 5 && !slices.Contains(m.lines, line) {
		m.lines = append(m.lines, line)
	}
}

// with adds them to an error.
func (m *messages) with(err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil || len(m.lines) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(m.lines, "; "))
}

// fetch lets a daemon substitute the path, and compares what it got.
func fetch(ctx context.Context, ep daemon.Endpoint, settings map[string]string, p *probe) error {
	var said messages
	conn, err := daemon.Dial(ctx, ep, daemon.Options{Settings: settings, Verbosity: daemon.Warn, Log: said.log})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.EnsurePath(ctx, p.info.Path); err != nil {
		return said.with(err)
	}
	var got bytes.Buffer
	if err := conn.NarFromPath(ctx, p.info.Path, &got); err != nil {
		return err
	}
	if !bytes.Equal(got.Bytes(), p.nar) {
		return errors.New("the contents differ")
	}
	return nil
}

// settingsFor are those of a task, with this cache alone.
func (c *checker) settingsFor(bc *secrets.BinaryCache) map[string]string {
	settings := map[string]string{}
	for name, value := range c.settings {
		settings[name] = value
	}
	settings["substituters"] = bc.Substituter()
	settings["trusted-public-keys"] = strings.Join(append(slices.Clone(bc.PublicKeys), c.nix.TrustedPublicKeys()...), " ")
	return settings
}

// ask lets the daemon look for a path that is not there yet.
func (c *checker) ask(ctx context.Context, bc *secrets.BinaryCache, p *probe) error {
	conn, err := daemon.Dial(ctx, *c.endpoint, daemon.Options{Settings: c.settingsFor(bc)})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_, err = conn.QuerySubstitutablePaths(ctx, []string{p.info.Path})
	return err
}

// substitute lets the machine's own daemon get what was uploaded, as it has to for a build.
func (c *checker) substitute(ctx context.Context, bc *secrets.BinaryCache, asked, fresh *probe, negative bool) {
	const check = "substitute"
	if c.endpoint == nil {
		c.say(bc.Name, check, Skip, "there is no daemon to ask")
		return
	}
	defer c.collect(context.WithoutCancel(ctx), asked.info.Path, fresh.info.Path)
	settings := c.settingsFor(bc)
	if err := fetch(ctx, *c.endpoint, settings, fresh); err != nil {
		c.advice.want(bc.Substituter(), bc.PublicKeys)
		why := "the daemon does not trust this user and its configuration lacks the cache or its keys"
		if c.trust == daemon.Trusted {
			why = "although it trusts this user"
			c.advice.Trust = false
		}
		c.say(bc.Name, check, Fail, "the daemon does not take the path from the cache: %s: %s", why, told(err))
		return
	}
	if negative {
		if err := fetch(ctx, *c.endpoint, settings, asked); err != nil {
			c.advice.NegativeTTL = true
			c.say(bc.Name, check, Fail, "the daemon remembers that the cache did not have a path before it was uploaded: its narinfo-cache-negative-ttl is not 0")
			return
		}
	}
	c.say(bc.Name, check, OK, "the daemon takes what was uploaded and accepts its signature")
}

// compareSettings does what can be done without a path that is known to be in the cache.
func (c *checker) compareSettings(bc *secrets.BinaryCache) {
	const check = "substitute"
	if c.endpoint == nil {
		c.say(bc.Name, check, Skip, "there is no daemon to ask")
		return
	}
	if c.trust == daemon.Trusted {
		c.say(bc.Name, check, OK, "the daemon lets this user choose caches and keys")
		return
	}
	known := func(list []string, s string) bool {
		return slices.ContainsFunc(list, func(have string) bool { return strings.TrimRight(have, "/") == strings.TrimRight(s, "/") })
	}
	cache := known(append(c.nix.Substituters(), c.nix.List("trusted-substituters")...), bc.Substituter())
	keys := len(bc.PublicKeys) > 0
	for _, k := range bc.PublicKeys {
		keys = keys && known(c.nix.TrustedPublicKeys(), k)
	}
	switch {
	case cache && keys:
		c.say(bc.Name, check, OK, "the cache and its keys are in the configuration of Nix")
	case c.trust == daemon.NotTrusted:
		c.advice.want(bc.Substituter(), bc.PublicKeys)
		c.say(bc.Name, check, Fail, "the daemon does not trust this user, and the cache or a key of it is not in the configuration of Nix")
	default:
		c.say(bc.Name, check, Skip, "not tried: it needs a path that is known to be in the cache")
	}
}

// collect removes what the check left in the store. The paths are tiny, so it does not matter much if it cannot.
func (c *checker) collect(ctx context.Context, paths ...string) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := daemon.Dial(ctx, *c.endpoint, daemon.Options{})
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	valid, err := conn.QueryValidPaths(ctx, paths, false)
	if err == nil && len(valid) > 0 {
		_, _, _ = conn.CollectGarbage(ctx, daemon.GCDeleteSpecific, valid, 0)
	}
}

var ansi = regexp.MustCompile("\x1b\\[[0-9;]*m")

// plain is a message of Nix on one line and without colours.
func plain(text string) string {
	return strings.Join(strings.Fields(ansi.ReplaceAllString(text, "")), " ")
}

// removeAll removes a tree with stores in it, whose directories may not be written.
func removeAll(dir string) error {
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(p, 0o700) //nolint:gosec // a directory on its way out
		}
		return err
	})
	return os.RemoveAll(dir)
}
