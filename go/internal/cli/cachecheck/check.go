// Package cachecheck finds out whether an agent could use its binary caches: whether they can be reached, read and
// written, whether the keys are right, and whether the Nix daemon of this machine accepts what they give.
//
// It tries things rather than comparing settings: a tiny store path that nobody has is uploaded, read back and
// substituted. It prints nothing.
package cachecheck

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/localstore"
	"hercules/internal/nix/nixconf"
	"hercules/internal/nix/substituter"
	"hercules/internal/secrets"
)

// cacheLimit bounds what one cache may take.
const cacheLimit = 3 * time.Minute

// Result of a check.
type Result string

// The results.
const (
	OK   Result = "ok"
	Warn Result = "warn" // works, but not as it should
	Fail Result = "fail"
	Skip Result = "skip" // could not be tried, or was not wanted
)

// Check is one thing that was looked at.
type Check struct {
	// Cache is the name of the entry; empty for what concerns Nix itself.
	Cache   string `json:"cache,omitempty"`
	Check   string `json:"check"`
	Result  Result `json:"result"`
	Message string `json:"message"`
}

// Options of [Run].
type Options struct {
	// Caches are those to be checked.
	Caches []secrets.BinaryCache
	// NixProgram is nix; empty means the one of PATH. Env is its environment; nil means the process's own.
	NixProgram string
	Env        []string
	// NixSettings are those of the agent.
	NixSettings map[string]string
	// Declared is the agent's setting nixUserIsTrusted; nil when the agent's configuration is not known.
	Declared *bool
	// User is who the agent runs as, for advice.
	User string
	// Upload lets a tiny store path be uploaded to caches that can be pushed to.
	Upload bool
	// Store is the way to the Nix store; nil means that it is looked for.
	Store *localstore.Store
	// Emit gets each check as it is done.
	Emit func(Check)
}

// checker is one run.
type checker struct {
	Options
	nix      *nixconf.Settings
	endpoint *daemon.Endpoint // nil: there is no daemon to ask
	settings map[string]string
	trust    daemon.Trust
	dir      string // for temporary files, private
	netrc    string // file with the credentials; empty when there are none
	login    func(host string) *url.Userinfo
	client   *http.Client
	advice   Advice
	failed   bool
}

// Run does the checks. The advice says what to change. An error means that there is nothing that could be checked.
func Run(ctx context.Context, o Options) (advice *Advice, good bool, err error) {
	env := o.Env
	if env == nil {
		env = os.Environ()
	}
	if o.Env = env; o.NixProgram == "" {
		o.NixProgram = "nix"
	}
	c := &checker{Options: o}
	c.advice.User = o.User
	if c.nix, err = nixconf.LoadEnv(ctx, o.NixProgram, env, o.NixSettings); err != nil {
		return nil, false, fmt.Errorf("nix is not usable: %w", err)
	}
	c.settings = c.nix.Overridden()
	if c.dir, err = os.MkdirTemp("", "hci-cache-check-"); err != nil {
		return nil, false, err
	}
	defer func() { _ = removeAll(c.dir) }()
	if c.dir, err = filepath.EvalSymlinks(c.dir); err != nil { // Nix refuses links on the way to a store
		return nil, false, err
	}
	if err := c.writeNetrc(); err != nil {
		return nil, false, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	c.client = &http.Client{Transport: transport}

	c.checkNix(ctx)
	for _, bc := range c.Caches {
		limited, cancel := context.WithTimeoutCause(ctx, cacheLimit, fmt.Errorf("it took longer than %v", cacheLimit))
		c.checkCache(limited, &bc)
		cancel()
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
	}
	return &c.advice, !c.failed, nil
}

func (c *checker) say(cache, check string, r Result, format string, args ...any) {
	if r == Fail {
		c.failed = true
	}
	c.Emit(Check{Cache: cache, Check: check, Result: r, Message: fmt.Sprintf(format, args...)})
}

// writeNetrc makes the file with credentials that a task would get: agent-behaviour 5.4.
func (c *checker) writeNetrc() error {
	var operator []byte
	if file := c.nix.NetrcFile(); file != "" {
		text, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("netrc: %w", err)
		}
		operator = text
	}
	c.login = func(host string) *url.Userinfo { return substituter.FindLogin(string(operator), host) }
	logins := (&secrets.BinaryCaches{Caches: c.Caches}).CachixLogins()
	if operator == nil && len(logins) == 0 {
		return nil
	}
	var err error
	if c.netrc, err = secrets.WriteNetrc(c.dir, operator, logins); err == nil {
		c.settings["netrc-file"] = c.netrc
	}
	return err
}

// checkNix looks at what concerns all caches: agent-behaviour 5.5 and 7.1.
func (c *checker) checkNix(ctx context.Context) {
	c.say("", "nix", OK, "Nix %s", c.nix.Version().Text)
	switch ttl, err := c.nix.NarinfoCacheNegativeTTL(); {
	case err != nil:
		c.say("", "negative-ttl", Fail, "%v", err)
	case ttl != 0:
		c.advice.NegativeTTL = true
		c.say("", "negative-ttl", Fail, "narinfo-cache-negative-ttl is %d and has to be 0: Nix would not see for so long what another agent has pushed", ttl)
	default:
		c.say("", "negative-ttl", OK, "narinfo-cache-negative-ttl is 0 for this user")
	}
	c.openStore(ctx)
}

func (c *checker) openStore(ctx context.Context) {
	store := c.Store
	if store == nil {
		s, err := localstore.Find(ctx, localstore.Options{Setting: c.nix.Get, Getenv: c.getenv})
		if err != nil {
			c.say("", "daemon", Fail, "%v", err)
			return
		}
		store = &s
	}
	conn, err := daemon.Dial(ctx, store.Endpoint, daemon.Options{Settings: c.settings})
	if err != nil {
		c.say("", "daemon", Fail, "the Nix store cannot be used through %s: %v", store.Why, err)
		return
	}
	defer func() { _ = conn.Close() }()
	c.endpoint, c.trust = &store.Endpoint, conn.Trusted()
	c.say("", "daemon", OK, "%s answers, Nix %s", store.Why, conn.DaemonVersion())
	declared := c.Declared != nil && *c.Declared
	switch c.trust {
	case daemon.Trusted:
		if c.Declared != nil && !declared {
			c.say("", "trust", Warn, "the daemon trusts this user; set nixUserIsTrusted = true in the agent's configuration to make use of it")
			return
		}
		c.say("", "trust", OK, "the daemon trusts this user")
	case daemon.NotTrusted:
		c.advice.Trust = true
		if declared {
			c.say("", "trust", Fail, "nixUserIsTrusted is set, but the daemon does not trust this user")
			return
		}
		c.say("", "trust", Warn, "the daemon does not trust this user: it only takes caches and keys that are in its own configuration")
	default:
		c.say("", "trust", Skip, "this daemon does not say whether it trusts this user; the checks of the caches show it")
	}
}

func (c *checker) getenv(name string) string {
	for i := len(c.Env) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(c.Env[i], name+"="); ok {
			return value
		}
	}
	return ""
}

// program is a program of the Nix that is used.
func (c *checker) program(name string) string {
	if filepath.IsAbs(c.NixProgram) {
		return filepath.Join(filepath.Dir(c.NixProgram), name)
	}
	return name
}
