package cachecheck

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"hercules/internal/formats"
	"hercules/internal/secrets"
)

// key is a public key, or the public half of a signing key.
type key struct {
	name string // may be empty for the signing key of a Cachix cache
	data string
}

func (k key) String() string { return k.name + ":" + base64.StdEncoding.EncodeToString([]byte(k.data)) }

func parseKey(text string, size int, named bool) (name string, data []byte, err error) {
	name, encoded, ok := strings.Cut(strings.TrimSpace(text), ":")
	if !ok && !named {
		name, encoded = "", name
	}
	switch {
	case named && !ok:
		return "", nil, errors.New("it has no name and colon before the base 64")
	case named && name == "":
		return "", nil, errors.New("the name before the colon is empty")
	}
	if data, err = base64.StdEncoding.DecodeString(encoded); err != nil {
		return "", nil, errors.New("what follows the name is not base 64")
	}
	if len(data) != size {
		return "", nil, fmt.Errorf("it has %d bytes instead of %d", len(data), size)
	}
	return name, data, nil
}

// checkKeys looks whether the keys of a cache are keys and belong together. Whether they are the cache's shows later.
func (c *checker) checkKeys(bc *secrets.BinaryCache) {
	var public []key
	good := true
	wrong := func(format string, args ...any) {
		good = false
		c.say(bc.Name, "keys", Fail, format, args...)
	}
	for _, text := range bc.PublicKeys {
		name, data, err := parseKey(text, ed25519.PublicKeySize, true)
		if err != nil {
			hint := ""
			if _, _, err := parseKey(text, ed25519.PrivateKeySize, false); err == nil {
				hint = "; this is a signing key, which is secret: take it out of publicKeys, and use a new one if others have read the file"
				text = "…"
			}
			wrong("public key %q is not one: %v%s", text, err, hint)
			continue
		}
		public = append(public, key{name, string(data)})
	}
	cachix := bc.Kind == formats.KindCachixCache
	var signing []string
	for i, secret := range bc.SigningKeys {
		name, data, err := parseKey(secret.Reveal(), ed25519.PrivateKeySize, !cachix)
		if err != nil {
			made := "nix-store --generate-binary-cache-key"
			if cachix {
				made = "cachix generate-keypair"
			}
			wrong("signing key %d is not one: %v (%s makes them)", i+1, err, made)
			continue
		}
		half := key{name, string(data[ed25519.PrivateKeySize-ed25519.PublicKeySize:])}
		if cachix {
			half.name = bc.Name + ".cachix.org-1"
		}
		if string(ed25519.NewKeyFromSeed(data[:ed25519.SeedSize])) != string(data) {
			wrong("signing key %d (%s) is damaged: its two halves do not belong together", i+1, half.name)
			continue
		}
		signing = append(signing, half.name)
		switch {
		case slices.Contains(public, half):
		case slices.ContainsFunc(public, func(k key) bool { return k.data == half.data }):
			if !cachix { // whose signatures have the name that the service gives
				wrong("signing key %s has its public half in publicKeys under another name; it has to be %s", half.name, half)
			}
		case slices.ContainsFunc(public, func(k key) bool { return k.name == half.name }):
			wrong("signing key and public key %s do not belong together; the public key would have to be %s", half.name, half)
		default:
			wrong("nobody will accept what is signed with %s: publicKeys lacks %s", half.name, half)
		}
	}
	switch {
	case !good:
	case len(public) == 0:
		c.say(bc.Name, "keys", Warn, "publicKeys is empty: only what is signed with a key that Nix knows anyway will be accepted")
	case len(signing) > 0:
		c.say(bc.Name, "keys", OK, "signed with %s, whose public key is there", strings.Join(signing, ", "))
	default:
		c.say(bc.Name, "keys", OK, "%s; the agent signs nothing", plural(len(public), "public key"))
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
