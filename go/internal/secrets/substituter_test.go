package secrets_test

import (
	"testing"

	"hercules/internal/secrets"
)

func TestSubstituter(t *testing.T) {
	t.Parallel()
	caches, err := secrets.ParseBinaryCaches("b", []byte(`{
		"acme": {"kind": "CachixCache", "publicKeys": []},
		"main": {"kind": "CachixCache", "publicKeys": [], "apiBaseUrl": "https://ci.example:8443/cache/main/"},
		"nix": {"kind": "NixCache", "storeURI": "https://user:pass@cache.example/?priority=7", "publicKeys": [], "signingKeys": []}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"https://acme.cachix.org", "https://ci.example:8443/cache/main/api/v1/cache/main", "https://user:pass@cache.example/?priority=7",
	}
	for i, c := range caches.Caches {
		if got := c.Substituter(); got != want[i] {
			t.Errorf("%s: %s", c.Name, got)
		}
	}
}
