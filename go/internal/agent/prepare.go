package agent

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"hercules/internal/config"
	"hercules/internal/formats"
	"hercules/internal/nix/localstore"
	"hercules/internal/nix/nixconf"
	"hercules/internal/push"
	"hercules/internal/secrets"
	"hercules/internal/secrets/watch"
	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/agentclient"
)

// environment is what an agent finds when it starts.
type environment struct {
	nix       *nixconf.Settings
	store     localstore.Store
	secure    string // directory for secrets of tasks
	caches    *secrets.BinaryCaches
	operator  []byte // content of the operator's netrc; nil where there is none
	joinToken secrets.Sensitive
	api       *agentclient.Client
	urls      urls
}

// urls of the sockets. What is shown has no query, which may be a secret.
type urls struct{ agent, logs, shown string }

// Check does what an agent does when it starts, up to and without connecting: --test-configuration. It needs the
// network, and neither a Nix daemon nor a valid token.
func Check(ctx context.Context, cfg *config.Config, opt Options) error {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	e, err := prepare(ctx, cfg, opt)
	if err == nil {
		e.api.CloseIdle()
	}
	return err
}

// prepare goes through the steps of agent-behaviour 1.1, in that order; the configuration is step 1.
func prepare(ctx context.Context, cfg *config.Config, opt Options) (*environment, error) {
	e := &environment{}
	env := opt.Env
	if env == nil {
		env = os.Environ()
	}
	var err error
	if e.nix, err = nixconf.LoadEnv(ctx, opt.NixProgram, env, cfg.NixSettings); err != nil {
		return nil, fmt.Errorf("nix is not usable: %w. Install it, and look at nix.conf and at nixSettings", err)
	}
	if e.secure, err = prepareWorkDirectory(cfg.WorkDirectory); err != nil {
		return nil, err
	}
	if e.caches, err = secrets.ReadBinaryCaches(cfg.BinaryCachesPath); err != nil {
		return nil, err
	}
	for _, w := range e.caches.Warnings {
		opt.Log.Warn("binary caches", "warning", w)
	}
	if e.api, err = agentclient.New(agentclient.Options{BaseURL: cfg.APIBaseURL, Transport: opt.Transport, Log: opt.Log}); err != nil {
		return nil, err
	}
	if e.joinToken, err = secrets.ReadJoinToken(cfg.ClusterJoinTokenPath); err != nil {
		return nil, err
	}
	if e.joinToken.Empty() {
		opt.Log.Warn("the cluster join token is empty; a new session cannot be made with it", "file", cfg.ClusterJoinTokenPath)
	}
	if err := checkCaches(cfg.BinaryCachesPath, e.caches); err != nil {
		return nil, err
	}
	if netrc := e.nix.NetrcFile(); netrc != "" {
		if e.operator, err = operatorNetrc(watch.Read(netrc)); err != nil {
			return nil, err
		}
	}
	if err := checkNegativeTTL(e.nix); err != nil {
		return nil, err
	}
	info, err := e.api.ServiceInfo(ctx)
	if err != nil {
		return nil, fmt.Errorf("the coordinator at %s cannot be reached: %w. Look at apiBaseUrl and at the network", cfg.APIBaseURL, err)
	}
	if e.urls, err = socketURLs(info); err != nil {
		return nil, fmt.Errorf("the coordinator at %s gives wrong addresses: %w", cfg.APIBaseURL, err)
	}
	return e, nil
}

func checkCaches(path string, caches *secrets.BinaryCaches) error {
	for _, c := range caches.Caches {
		if err := checkCachix(&c); err != nil {
			return fmt.Errorf("binary caches: %s: %q: %w", path, c.Name, err)
		}
	}
	pusher, err := push.Open(caches.Caches, push.Deps{})
	if err != nil {
		return fmt.Errorf("binary caches: %s: %w", path, err)
	}
	pusher.Close()
	return nil
}

// checkCachix looks at the signing key that uploads will use. A Cachix key is 64 bytes in base 64, with or without a
// name before it.
func checkCachix(c *secrets.BinaryCache) error {
	if c.Kind != formats.KindCachixCache || len(c.SigningKeys) == 0 {
		return nil
	}
	key := c.SigningKeys[0].Reveal()
	key = strings.TrimSpace(key[strings.LastIndexByte(key, ':')+1:])
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(raw) != 64 {
		return fmt.Errorf("the first signing key is not one: 64 bytes in base 64 are expected, as cachix generate-keypair makes them")
	}
	return nil
}

// checkNegativeTTL: agent-behaviour 5.5. What one agent builds, another one has to see at once.
func checkNegativeTTL(nix *nixconf.Settings) error {
	ttl, err := nix.NarinfoCacheNegativeTTL()
	if err != nil {
		return err
	}
	if ttl != 0 {
		return fmt.Errorf("the Nix setting narinfo-cache-negative-ttl is %d and has to be 0: otherwise Nix remembers for so many seconds that a cache does not have a path, "+
			"also when another agent has built it in the meantime. Set it in nix.conf, for the daemon too; or at least in nixSettings", ttl)
	}
	return nil
}

// socketURLs are made of the bases in the service info: protocol 2.3.
func socketURLs(info *agentapi.ServiceInfo) (urls, error) {
	join := func(base, path string) (*url.URL, error) {
		u, err := url.Parse(base)
		if err != nil {
			return nil, fmt.Errorf("%q is not a URL", base)
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("%q is not a URL that starts with http:// or https://", u.Redacted())
		}
		u.Path = strings.TrimRight(u.Path, "/") + path
		u.RawPath, u.Fragment = "", ""
		return u, nil
	}
	agent, err := join(info.AgentSocketBaseURL, "/api/v1/agent-socket")
	if err != nil {
		return urls{}, fmt.Errorf("agentSocketBaseURL: %w", err)
	}
	logs, err := join(info.BulkSocketBaseURL, "/api/v1/logs/build/socket")
	if err != nil {
		return urls{}, fmt.Errorf("bulkSocketBaseURL: %w", err)
	}
	u := urls{agent: agent.String(), logs: logs.String()}
	agent.RawQuery, agent.User = "", nil
	u.shown = agent.String()
	return u, nil
}

// session finds or makes the session: protocol 7.2.
func (a *agent) session() (secrets.Sensitive, error) {
	s := secrets.Sessions{
		Path: filepath.Join(a.cfg.BaseDirectory, "secretState", "session.key"),
		Log:  a.log,
		Create: func(ctx context.Context, join secrets.Sensitive) (secrets.Sensitive, error) {
			token, err := a.api.CreateSession(ctx, join.Reveal(), a.agentInfo())
			return secrets.NewSensitive(token), err
		},
	}
	return s.Session(a.ctx, a.joinToken)
}
