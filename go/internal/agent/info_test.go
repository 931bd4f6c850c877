package agent

import (
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/agent/setup"
	"hercules/internal/config"
	"hercules/internal/nix/nixconf"
	"hercules/internal/secrets"
	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

func caches(t *testing.T, text string) *secrets.BinaryCaches {
	t.Helper()
	c, err := secrets.ParseBinaryCaches("binary-caches.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestInfo(t *testing.T) {
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n), testnix.WithConfig(
			"substituters = https://user:hush@private.example https://cache.example/ s3://bucket",
			"trusted-public-keys = a:1 b:2", "system-features = kvm benchmark", "extra-platforms = zzz-linux aaa-linux", "system = mmm-linux"))
		nix, err := nixconf.LoadEnv(t.Context(), s.Program("nix"), s.Env(), nil)
		if err != nil {
			t.Fatal(err)
		}
		a := &agent{
			log:         slog.New(slog.DiscardHandler),
			cfg:         &config.Config{ConcurrentTasks: 3, RemotePlatformsWithSameFeatures: []string{"remote-linux", "aaa-linux"}},
			environment: &environment{nix: nix},
			nixInfo:     nixInfo{client: 1<<8 | 34, daemon: 1<<8 | 35},
		}
		set, err := setup.New(t.TempDir(), nix, nil, caches(t, `{
				"acme": {"kind": "CachixCache", "publicKeys": ["c:3", "a:1"], "authToken": "hush"},
				"pull": {"kind": "CachixCache", "publicKeys": []},
				"own": {"kind": "NixCache", "storeURI": "s3://bucket", "publicKeys": ["d:4"], "signingKeys": []}}`), nil)
		if err != nil {
			t.Fatal(err)
		}
		a.setups = setup.NewHolder(a.log, set)
		info := a.agentInfo()
		info.Hostname, info.AgentVersion = "", ""
		want := agentapi.AgentInfo{
			NixVersion: n.Version, NixClientProtocolVersion: 290, NixDaemonProtocolVersion: 291,
			Platforms:        agentapi.List[string]{"aaa-linux", "mmm-linux", "zzz-linux", "remote-linux"},
			SystemFeatures:   agentapi.List[string]{"benchmark", "kvm"},
			CachixPushCaches: agentapi.List[string]{"acme"},
			PushCaches:       agentapi.List[string]{"acme", "own"},
			Substituters: agentapi.List[string]{
				"s3://bucket", censored, "https://cache.example/", "https://acme.cachix.org", "https://pull.cachix.org",
			},
			ConcurrentTasks: 3,
			Labels:          info.Labels,
		}
		if d := cmp.Diff(want, info); d != "" {
			t.Error(d)
		}
		// What counts is not censored.
		for _, settings := range []map[string]string{set.Settings, set.Evaluator} {
			if got, want := settings["substituters"], "s3://bucket https://user:hush@private.example https://cache.example/ https://acme.cachix.org https://pull.cachix.org"; got != want {
				t.Errorf("substituters: %s", got)
			}
			if got := settings["trusted-public-keys"]; got != "d:4 a:1 b:2 c:3" {
				t.Errorf("keys: %s", got)
			}
		}

		// The operator's labels win over the one that says what is wrong.
		a.setups.SetProblem("it is wrong")
		if got := string(a.agentInfo().Labels["reloadError"]); got != `"it is wrong"` {
			t.Errorf("label: %s", got)
		}
		a.cfg.Labels = map[string]json.RawMessage{"reloadError": json.RawMessage("7")}
		if got := string(a.agentInfo().Labels["reloadError"]); got != "7" {
			t.Errorf("label: %s", got)
		}
	})
}

func TestSocketURLs(t *testing.T) {
	t.Parallel()
	tests := []struct{ base, agent, err string }{
		{base: "https://ci.example", agent: "https://ci.example/api/v1/agent-socket"},
		{base: "http://ci.example:8080/prefix//?key=hush", agent: "http://ci.example:8080/prefix/api/v1/agent-socket?key=hush"},
		{base: "wss://ci.example", err: "http:// or https://"},
		{base: "ci.example", err: "http:// or https://"},
		{base: "https://", err: "http:// or https://"},
		{base: "", err: "http:// or https://"},
	}
	for _, test := range tests {
		u, err := socketURLs(&agentapi.ServiceInfo{AgentSocketBaseURL: test.base, BulkSocketBaseURL: "https://logs.example/"})
		switch {
		case test.err != "":
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: got %v", test.base, err)
			}
		case err != nil:
			t.Errorf("%s: %v", test.base, err)
		case u.agent != test.agent || u.logs != "https://logs.example/api/v1/logs/build/socket" || strings.Contains(u.shown, "hush"):
			t.Errorf("%s: got %+v", test.base, u)
		}
	}
}

func TestCachixKeys(t *testing.T) {
	t.Parallel()
	key := base64.StdEncoding.EncodeToString(make([]byte, 64))
	for text, good := range map[string]bool{key: true, "acme.cachix.org-1:" + key: true, "c2VjcmV0": false, "": false, "!!": false} {
		c := caches(t, `{"acme": {"kind": "CachixCache", "publicKeys": [], "signingKeys": ["`+text+`"]}}`)
		if err := checkCachix(&c.Caches[0]); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}
