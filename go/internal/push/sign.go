package push

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nix-community/go-nix/pkg/narinfo/signature"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/narinfo"
	"hercules/internal/secrets"
)

// signer makes the signatures of a cache.
type signer struct{ keys []signature.SecretKey }

// newSigner takes keys in Nix's form, NAME:BASE64. An error does not have the key.
func newSigner(keys []secrets.Sensitive) (*signer, error) {
	s := &signer{}
	for i, k := range keys {
		text := strings.TrimSpace(k.Reveal())
		key, err := signature.LoadSecretKey(text)
		if err != nil {
			return nil, fmt.Errorf("signing key %d is not one: NAME:KEY is expected, as nix-store --generate-binary-cache-key makes it", i+1)
		}
		s.keys = append(s.keys, key)
	}
	return s, nil
}

// publicKeys are those with which the signatures can be checked.
func (s *signer) publicKeys() []string {
	var keys []string
	for _, k := range s.keys {
		keys = append(keys, k.ToPublicKey().String())
	}
	return keys
}

// sign gives the path info with the signatures of all keys, and those that it did not have before.
func (s *signer) sign(info *daemon.PathInfo) (*daemon.PathInfo, []string, error) {
	if len(s.keys) == 0 {
		return info, nil, nil
	}
	var made []string
	fingerprint := narinfo.Fingerprint(info)
	for _, k := range s.keys {
		sig, err := k.Sign(rand.Reader, fingerprint)
		if err != nil {
			return nil, nil, errors.New("signing: the key cannot sign")
		}
		if text := sig.String(); !slices.Contains(info.Signatures, text) {
			made = append(made, text)
		}
	}
	if len(made) == 0 {
		return info, nil, nil
	}
	signed := *info
	signed.Signatures = append(slices.Clip(info.Signatures), made...)
	return &signed, made, nil
}

// cachixKey is the first of the keys of a Cachix cache, which needs no name.
func cachixKey(keys []secrets.Sensitive) (ed25519.PrivateKey, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	text := strings.TrimSpace(keys[0].Reveal())
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text[strings.LastIndexByte(text, ':')+1:]))
	if err != nil || len(raw) != ed25519.PrivateKeySize {
		return nil, errors.New("the first signing key is not one: 64 bytes in base 64 are expected, as cachix generate-keypair makes them")
	}
	return ed25519.PrivateKey(raw), nil
}
