package cachecheck_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"hercules/internal/cli/cachecheck"
	"hercules/internal/coordinator/cache"
	"hercules/internal/nix/localstore"
	"hercules/internal/secrets"
	"hercules/internal/testnix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// boxed is a private cache in a box, reached through a handler that may do harm.
type boxed struct {
	*cache.Cache
	url string
}

const (
	readToken  = "read-hush"
	writeToken = "write-hush"
)

func newBox(t *testing.T, harm func(http.Handler) http.Handler) *boxed {
	t.Helper()
	c, err := cache.Open(t.TempDir(), cache.Options{
		Name: "box", NoSync: true,
		ReadTokens: []secrets.Sensitive{secrets.NewSensitive(readToken)}, WriteTokens: []secrets.Sensitive{secrets.NewSensitive(writeToken)},
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := c.Handler()
	if harm != nil {
		handler = harm(handler)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return &boxed{c, server.URL}
}

// with is the URL with a password.
func (b *boxed) with(password string) string {
	u, err := url.Parse(b.url)
	if err != nil {
		panic(err)
	}
	u.User = url.UserPassword("me", password)
	return u.String()
}

// keyPair makes a signing key and its public half.
func keyPair(t *testing.T, s *testnix.Store, name string) (secret, public string) {
	t.Helper()
	sec, pub := filepath.Join(t.TempDir(), "sec"), filepath.Join(t.TempDir(), "pub")
	s.Run("nix-store", "--generate-binary-cache-key", name, sec, pub)
	a, err := os.ReadFile(sec)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(a)), strings.TrimSpace(string(b))
}

type entry map[string]any

func nixCache(uri string, public, signing []string) entry {
	return entry{"kind": "NixCache", "storeURI": uri, "publicKeys": public, "signingKeys": signing}
}

// check checks one cache and gives its results and what was said.
func check(t *testing.T, s *testnix.Store, e entry, change func(*cachecheck.Options)) (results map[string]cachecheck.Result, said string, advice *cachecheck.Advice) {
	t.Helper()
	text, err := json.Marshal(map[string]any{"box": e})
	if err != nil {
		t.Fatal(err)
	}
	caches, err := secrets.ParseBinaryCaches("binary-caches.json", text)
	if err != nil {
		t.Fatal(err)
	}
	results = map[string]cachecheck.Result{}
	var lines strings.Builder
	o := cachecheck.Options{
		Caches: caches.Caches, NixProgram: s.Program("nix"), Env: s.Env(), User: "ci", Upload: true,
		NixSettings: map[string]string{"narinfo-cache-negative-ttl": "0"},
		Store:       &localstore.Store{Endpoint: s.Endpoint(), Why: "test"},
		Emit: func(c cachecheck.Check) {
			results[c.Check] = c.Result
			fmt.Fprintf(&lines, "%s %s %s: %s\n", c.Result, c.Cache, c.Check, c.Message)
		},
	}
	if change != nil {
		change(&o)
	}
	advice, good, err := cachecheck.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	said = lines.String()
	t.Logf("\n%s", said)
	if strings.Contains(said, "hush") {
		t.Error("a secret is shown")
	}
	failed := false
	for _, r := range results {
		failed = failed || r == cachecheck.Fail
	}
	if failed == good {
		t.Errorf("good is %v", good)
	}
	return results, said, advice
}

func expect(t *testing.T, results map[string]cachecheck.Result, want string) {
	t.Helper()
	for pair := range strings.FieldsSeq(want) {
		name, result, _ := strings.Cut(pair, "=")
		if got := string(results[name]); got != result && (got != "" || result != "-") {
			t.Errorf("%s: got %q, want %q", name, got, result)
		}
	}
}

func TestGoodCaches(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n))
		box := newBox(t, nil)
		secret, public := keyPair(t, s, "mine-1")
		const all = "negative-ttl=ok daemon=ok keys=ok read=ok write=ok read-back=ok signature=ok substitute=ok"
		for name, test := range map[string]struct {
			entry entry
			more  string
		}{
			"a cache that speaks Cachix's protocol and signs": {
				entry{"kind": "CachixCache", "apiBaseUrl": box.url, "authToken": writeToken, "publicKeys": []string{box.PublicKey()}}, "service=ok",
			},
			"a binary cache with a password": {nixCache(box.with(writeToken), []string{public, box.PublicKey()}, []string{secret}), ""},
			"a directory":                    {nixCache("file://"+filepath.Join(s.Dir(), "cache"), []string{public}, []string{secret}), ""},
			"another store":                  {nixCache("local?root="+filepath.Join(s.Dir(), "other"), []string{public}, []string{secret}), ""},
		} {
			t.Run(name, func(t *testing.T) {
				results, _, advice := check(t, s, test.entry, nil)
				expect(t, results, all+" "+test.more)
				if len(advice.NixConf()) > 0 {
					t.Errorf("advice: %q", advice.NixConf())
				}
			})
		}
		// Nothing is left in the store.
		if left, _ := filepath.Glob(s.Real("/nix/store/*-hci-cache-check")); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	})
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	box := newBox(t, nil)
	netrc := s.File("netrc", "machine 127.0.0.1 login me password "+readToken+"\n")
	results, _, _ := check(t, s, entry{"kind": "CachixCache", "apiBaseUrl": box.url, "publicKeys": []string{box.PublicKey()}}, func(o *cachecheck.Options) {
		o.NixSettings["netrc-file"] = netrc
	})
	expect(t, results, "keys=ok read=ok write=skip substitute=skip read-back=-")

	results, said, _ := check(t, s, entry{"kind": "CachixCache", "apiBaseUrl": box.url, "authToken": readToken, "publicKeys": []string{box.PublicKey()}}, nil)
	expect(t, results, "keys=ok read=ok service=fail write=fail read-back=-")
	if !strings.Contains(said, "the token may only read") {
		t.Error("the permission of the token is not named")
	}

	results, said, _ = check(t, s, nixCache(box.url, []string{box.PublicKey()}, []string{}), nil)
	expect(t, results, "read=fail write=fail")
	if !strings.Contains(said, "netrc") {
		t.Error("it is not said where the password belongs")
	}

	results, _, _ = check(t, s, nixCache(box.with(writeToken), []string{box.PublicKey()}, []string{}), func(o *cachecheck.Options) { o.Upload = false })
	expect(t, results, "read=ok write=skip read-back=-")
	if n := box.Stats().Paths; n != 0 {
		t.Errorf("%d paths uploaded", n)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	secret, public := keyPair(t, s, "mine-1")
	_, stranger := keyPair(t, s, "mine-1")
	_, other := keyPair(t, s, "other-1")
	renamed := "new-1:" + public[strings.Index(public, ":")+1:]
	damaged := secret[:len("mine-1:")+4] + map[bool]string{true: "B", false: "A"}[secret[len("mine-1:")+4] == 'A'] + secret[len("mine-1:")+5:]
	tests := []struct {
		name            string
		public, signing []string
		want            string
		say             string
	}{
		{"another key of the name", []string{stranger}, []string{secret}, "keys=fail write=ok read-back=ok signature=fail substitute=-", "signing key and public key mine-1 do not belong together; the public key would have to be " + public},
		{"no public key of it", []string{other}, []string{secret}, "keys=fail signature=fail", "publicKeys lacks " + public},
		{"another name", []string{renamed}, []string{secret}, "keys=fail signature=fail", "another name"},
		{"a secret among the public ones", []string{secret}, []string{secret}, "keys=fail", "this is a signing key"},
		{"a public key of no form", []string{"mine-1"}, []string{secret}, "keys=fail", `public key "mine-1" is not one: it has no name and colon`},
		{"a damaged signing key", []string{public}, []string{damaged}, "keys=fail", "damaged"},
		{"a short signing key", []string{public}, []string{"mine-1:aGFsbG8="}, "keys=fail write=fail", "it has 5 bytes instead of 64"},
		{"no keys", []string{}, []string{}, "keys=warn write=ok signature=fail", "not signed"},
		{"nobody signs", []string{public}, []string{}, "keys=ok write=ok signature=fail", "not signed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			results, said, _ := check(t, s, nixCache("file://"+t.TempDir(), test.public, test.signing), nil)
			expect(t, results, test.want)
			if !strings.Contains(said, test.say) {
				t.Errorf("not said: %s", test.say)
			}
			if strings.Contains(said, secret[len("mine-1:"):]) {
				t.Error("the signing key is shown")
			}
		})
	}
}

// harmful servers accept everything.
func TestServersThatStoreSomethingElse(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	secret, public := keyPair(t, s, "mine-1")
	forgetful := func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPut:
				_, _ = io.Copy(io.Discard, r.Body)
			case r.URL.Path == "/nix-cache-info":
				_, _ = io.WriteString(w, "StoreDir: /nix/store\n")
			default:
				http.NotFound(w, r)
			}
		})
	}
	// change changes what files with a part of their name contain when they are read.
	change := func(name string, f func([]byte) []byte) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, name) {
					next.ServeHTTP(w, r)
					return
				}
				rec := httptest.NewRecorder()
				next.ServeHTTP(rec, r)
				if rec.Code != http.StatusOK {
					w.WriteHeader(rec.Code)
					return
				}
				_, _ = w.Write(f(rec.Body.Bytes()))
			})
		}
	}
	tests := []struct {
		name string
		harm func(http.Handler) http.Handler
		say  string
	}{
		{"nothing", forgetful, "the cache does not have the path"},
		{"archives with other bytes", change("/nar/", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("check"), []byte("chEck")) }), "Nix does not get back what was uploaded"},
		{"another size", change(".narinfo", func(b []byte) []byte { return bytes.Replace(b, []byte("NarSize: "), []byte("NarSize: 1"), 1) }), "something else than was uploaded"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			box := newBox(t, test.harm)
			e := nixCache(box.with(writeToken), []string{public, box.PublicKey()}, []string{secret})
			e["compression"] = "none"
			results, said, _ := check(t, s, e, nil)
			expect(t, results, "read=ok write=ok read-back=fail substitute=-")
			if !strings.Contains(said, test.say) {
				t.Errorf("not said: %s", test.say)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	results, _, _ := check(t, s, nixCache(strings.Replace(gone.URL, "://", "://me:hush@", 1), []string{}, []string{}), nil)
	expect(t, results, "read=fail write=fail read-back=-")

	page := httptest.NewServer(http.NotFoundHandler())
	defer page.Close()
	results, said, _ := check(t, s, nixCache(page.URL, []string{}, []string{}), nil)
	expect(t, results, "read=fail write=fail")
	if !strings.Contains(said, "not a binary cache") {
		t.Error("it is not said that there is no cache")
	}
}

func TestUntrustedUser(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		box := newBox(t, nil)
		e := nixCache(box.with(writeToken), []string{box.PublicKey()}, []string{})

		// The daemon knows neither cache nor keys.
		s := testnix.New(t, testnix.WithNix(n), testnix.WithConfig("trusted-users = nobody"))
		declared := true
		results, _, advice := check(t, s, e, func(o *cachecheck.Options) { o.Declared = &declared })
		expect(t, results, "write=ok read-back=ok signature=ok substitute=fail")
		if trust := results["trust"]; trust != cachecheck.Fail && trust != cachecheck.Skip { // old daemons do not say
			t.Errorf("trust: %s", trust)
		}
		if got := strings.Join(advice.NixConf(), "\n"); got != "extra-trusted-users = ci" {
			t.Errorf("advice: %s", got)
		}
		if got := strings.Join(advice.NixOS(), "\n"); got != `nix.settings.trusted-users = [ "ci" ];` {
			t.Errorf("advice: %s", got)
		}
		if got := strings.Join(advice.Untrusting(), "\n"); !strings.Contains(got, "extra-trusted-public-keys = "+box.PublicKey()) || strings.Contains(got, "hush") {
			t.Errorf("advice: %s", got)
		}

		// It knows both, and remembers what it should not.
		knows := testnix.WithConfig("trusted-users = nobody", "substituters = "+box.with(writeToken), "trusted-public-keys = "+box.PublicKey())
		s = testnix.New(t, testnix.WithNix(n), knows, testnix.WithConfig("narinfo-cache-negative-ttl = 3600"))
		results, said, advice := check(t, s, e, nil)
		expect(t, results, "negative-ttl=ok write=ok read-back=ok signature=ok substitute=fail")
		if !strings.Contains(said, "remembers that the cache did not have a path") || !advice.NegativeTTL {
			t.Errorf("advice: %q", advice.NixConf())
		}

		// It does as it should.
		s = testnix.New(t, testnix.WithNix(n), knows, testnix.WithConfig("narinfo-cache-negative-ttl = 0"))
		results, _, _ = check(t, s, e, nil)
		expect(t, results, "substitute=ok")
		results, _, _ = check(t, s, e, func(o *cachecheck.Options) { o.Upload = false })
		expect(t, results, "write=skip substitute=ok")
	})
}

func TestNegativeTTL(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	results, _, advice := check(t, s, nixCache("file://"+t.TempDir(), []string{}, []string{}), func(o *cachecheck.Options) {
		o.NixSettings = map[string]string{"narinfo-cache-negative-ttl": "60"}
		o.Upload = false
	})
	expect(t, results, "negative-ttl=fail")
	if got := strings.Join(append(advice.NixConf(), advice.NixOS()...), "\n"); got != "narinfo-cache-negative-ttl = 0\nnix.settings.narinfo-cache-negative-ttl = 0;" {
		t.Errorf("advice: %s", got)
	}
}
