package secrets_test

import (
	"strings"
	"testing"

	"hercules/internal/secrets"
)

// A wrong file is told by entry, field, and what was expected there, in one line and without what is in it.
func TestMessagesOfWrongCaches(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"a":{"kind":"NixCache","publicKeys":[],"signingKeys":[]}}`:                                  `f.json:1:2: "a": key "storeURI" is missing; expected is the URI of a Nix store as a text, such as "s3://bucket" or "https://cache.example"`,
		`{"a":{"kind":"NixCache","storeURI":3,"publicKeys":[],"signingKeys":[]}}`:                     `f.json:1:2: "a": .storeURI: a number where a string should be; expected is the URI of a Nix store as a text, such as "s3://bucket" or "https://cache.example"`,
		`{"a":{"kind":"NixCache","storeURI":"x","publicKeys":["k",3],"signingKeys":["hush"]}}`:        `f.json:1:2: "a": .publicKeys[1]: a number where a string should be; expected is a list of texts, such as ["cache.example-1:" and 44 characters of base 64]`,
		`{"a":{"kind":"NixCache","storeURI":"x","publicKeys":[]}}`:                                    `f.json:1:2: "a": key "signingKeys" is missing; expected is a list of texts, which may be empty`,
		`{"a":{"kind":"CachixCache","publicKeys":[],"authToken":{"hush":1}}}`:                         `f.json:1:2: "a": .authToken: an object where a string should be; expected is a text, the token of the cache`,
		`{"a":{"kind":"CachixCache","publicKeys":[],"compressionLevel":"9"}}`:                         `f.json:1:2: "a": .compressionLevel: a string where an integer should be; expected is a whole number`,
		`{"a":{"kind":"CachixCache","publicKeys":[],"concurrency":0}}`:                                `f.json:1:2: "a": "concurrency": expected a number of uploads from 1 to 256, not 0`,
		`{"a":{"kind":"CachixCache","publicKeys":[],"apiBaseUrl":"hush@cache.example"}}`:              `f.json:1:2: "a": "apiBaseUrl": expected a URL that begins with https:// or http://`,
		`{"a":{"kind":"CachixCache","publicKeys":[],"apiVersion":"v1"}}`:                              `f.json:1:2: "a": apiVersion is given, but no versions are defined; remove it`,
		`{"good":{"kind":"CachixCache","publicKeys":[]},` + "\n" + ` "b":5, "c":{"type":"NixCache"}}`: `f.json:2:2: "b": expected an object` + "\n" + `binary caches: f.json:2:9: "c": expected a text "kind", such as "CachixCache" or "NixCache"`,
		`["a"]`: `f.json:1:1: expected an object that maps names to caches`,
	} {
		_, err := secrets.ParseBinaryCaches("f.json", []byte(text))
		if err == nil || err.Error() != "binary caches: "+want {
			t.Errorf("%s:\n got %v\nwant binary caches: %s", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: the error shows a value: %v", text, err)
		}
	}
}

// What the file may not have is ignored, as it always was, but not in silence.
func TestWarningsAboutCaches(t *testing.T) {
	t.Parallel()
	b, err := secrets.ParseBinaryCaches("f.json", []byte(`{
		"a": {"kind": "CachixCache", "publicKeys": [], "authToken": "hush", "compresion": "xz", "storeURI": "https://hush@x"},
		"b": {"kind": "Attic"},
		"c": {"kind": "CachixCache", "publicKeys": [], "signingKeys": [], "apiVersion": null},
		"x": {"kind": "CachixCache", "publicKeys": [], "authToken": "hush1", "apiBaseUrl": "https://ci.example/x"},
		"y": {"kind": "CachixCache", "publicKeys": [], "authToken": "hush2", "apiBaseUrl": "https://ci.example/y"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`f.json:2:71: "a": a CachixCache has no key "compresion"; it is ignored`,
		`f.json:2:91: "a": a CachixCache has no key "storeURI"; it is ignored`,
		`f.json:3:3: "b": unknown kind "Attic"; the entry is ignored`,
		`f.json:4:3: "c": neither a signing key nor a token; nothing is pushed to it`,
		`f.json: caches at ci.example have different tokens; netrc has room for one, so Nix reads them all with the first`,
	}
	if got := strings.Join(b.Warnings, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got:\n%s", got)
	}
	if len(b.Caches) != 4 {
		t.Errorf("%d caches", len(b.Caches))
	}
}
