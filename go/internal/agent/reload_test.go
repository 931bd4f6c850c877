package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
)

func (r *rig) awaitLog(text string) {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(r.log.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("not in the log: %s", text)
		}
	}
}

// SIGHUP makes the agent look, and does not end it. What it tells the coordinator is made anew for each connection.
func TestHangup(t *testing.T) {
	t.Parallel()
	r := newRig(t, testnix.Versions(t)[0])
	p := r.process()
	r.c.await("the hello", func() bool { return len(r.c.hellos) == 1 })
	hangup := func() {
		t.Helper()
		if err := p.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	hangup()
	r.awaitLog("asked to read the binary caches and the netrc again")

	file := filepath.Join(r.Dir(), "agent", "secrets", "binary-caches.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
		hangup()
	}
	write(`{"own": {"kind": "NixCache", "storeURI": "file://` + r.Dir() + `/cache", "publicKeys": [], "signingKeys": []}}`)
	r.awaitLog("changed binary caches or netrc are in use")
	write(`{"own": {"kind": "NixCache", "publicKeys": [], "signingKeys": ["hush"]}}`)
	r.awaitLog("changed secrets are not used")

	r.wire.set(true)
	r.awaitLog("connection to the coordinator lost")
	r.wire.set(false)
	r.c.await("another hello", func() bool { return len(r.c.hellos) == 2 })
	before, after := r.c.hellos[0].AgentInfo, r.c.hellos[1].AgentInfo
	if len(before.PushCaches) != 0 || len(after.PushCaches) != 1 || after.PushCaches[0] != "own" {
		t.Errorf("push caches: %q, then %q", before.PushCaches, after.PushCaches)
	}
	if label := string(after.Labels["reloadError"]); before.Labels["reloadError"] != nil || !strings.Contains(label, "storeURI") || strings.Contains(label, "hush") {
		t.Errorf("label: %s", label)
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	if strings.Contains(r.log.String(), "hush") {
		t.Error("the log shows a secret")
	}
}

// The daemon takes no caches and keys from a user that it does not trust: what it knows itself is used, and the log says
// what to do.
func TestUntrustedUser(t *testing.T) {
	t.Parallel()
	versions := testnix.Versions(t)
	n := versions[len(versions)-1] // old daemons do not say whom they trust
	other := testnix.New(t, testnix.WithNix(n))
	conn, err := daemon.Dial(t.Context(), other.Endpoint(), daemon.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if conn.Trusted() == daemon.TrustUnknown {
		t.Skip("SKIP: no Nix here says whom it trusts")
	}
	secret, public := keyPair(other, "cache-1")
	input := other.Build(inputs + "input")
	dir := filepath.Join(other.Dir(), "cache")
	other.Copy("file://"+dir+"?secret-key="+secret, input)
	want := fileText(t, other.Real(input))
	caches := cachesFile(t, map[string]any{"own": map[string]any{"kind": "NixCache", "storeURI": "file://" + dir, "publicKeys": []string{public}, "signingKeys": []string{}}})
	for name, test := range map[string]struct {
		config []string
		got    bool
	}{
		"the daemon does not know the cache": {nil, false},
		"the daemon knows cache and key":     {[]string{"substituters = file://" + dir, "trusted-public-keys = " + public}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			store := testnix.New(t, testnix.WithNix(n), testnix.WithConfig(append(test.config, "trusted-users = nobody", "narinfo-cache-negative-ttl = 0")...))
			s.start(store, caches, map[string]any{"nixUserIsTrusted": false})
			outcomes := s.job(testnix.Prelude + inputs + `{ build = sh "build" { inherit input; } "cat $input > $out"; }`)
			if outcomes["build"] != "good" {
				t.Errorf("outcomes: %v", outcomes)
			}
			if got := fileText(t, store.Real(input)) == want; got != test.got {
				t.Errorf("substituted: %v, want %v", got, test.got)
			}
			if log := s.log.String(); !strings.Contains(log, "this user is not trusted by the Nix daemon") || !strings.Contains(log, "trusted-users") {
				t.Error("the log does not say what to do")
			}
		})
	}
}
