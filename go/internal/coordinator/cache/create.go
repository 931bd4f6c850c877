package cache

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/nix-community/go-nix/pkg/narinfo/signature"
	"github.com/nix-community/go-nix/pkg/nixbase32"

	"hercules/internal/coordinator/cache/narfile"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
)

// narinfoOf checks a NarInfoCreate and makes a narinfo of it, with a named signature.
func (c *Cache) narinfoOf(create *narInfoCreate) (*narinfo.NarInfo, error) {
	bad := func(member, format string, args ...any) error {
		return fail(http.StatusBadRequest, "%s: %s", member, fmt.Sprintf(format, args...))
	}
	n := &narinfo.NarInfo{NarSize: create.NarSize, FileSize: create.FileSize}
	var err error
	if len(create.StoreHash) != storepath.HashLen {
		return nil, bad("cStoreHash", "want %d characters", storepath.HashLen)
	}
	if n.StorePath, err = storepath.ParseBase(create.StoreHash + "-" + create.StoreSuffix); err != nil {
		return nil, bad("cStoreHash, cStoreSuffix", "%s", err)
	}
	text, ok := strings.CutPrefix(create.NarHash, "sha256:")
	if !ok {
		return nil, bad("cNarHash", "want sha256:<hash>")
	}
	nar, err := narfile.ParseDigest(text)
	if err != nil {
		return nil, bad("cNarHash", "%s", err)
	}
	n.NarHash = nar[:]
	if create.NarSize == 0 || create.FileSize == 0 {
		return nil, bad("cNarSize, cFileSize", "want more than 0")
	}
	file, err := hex.DecodeString(create.FileHash)
	if err != nil || len(file) != len(narfile.Digest{}) {
		return nil, bad("cFileHash", "want a sha256 in base 16 without prefix")
	}
	n.FileHash = "sha256:" + nixbase32.EncodeToString(file)
	if create.References == nil {
		return nil, bad("cReferences", "missing")
	}
	for _, base := range create.References {
		ref, err := storepath.ParseBase(base)
		if err != nil {
			return nil, bad("cReferences", "%s", err)
		}
		n.References = append(n.References, ref)
	}
	slices.Sort(n.References)
	n.References = slices.Compact(n.References)
	if create.Deriver != "" && create.Deriver != "unknown-deriver" {
		if n.Deriver, err = storepath.ParseBase(create.Deriver); err != nil {
			return nil, bad("cDeriver", "%s", err)
		}
	}
	if create.Sig != nil && *create.Sig != "" {
		sig, err := c.nameSig(narinfo.Fingerprint(n.PathInfo()), *create.Sig)
		if err != nil {
			return nil, err
		}
		n.Sigs = []string{sig}
	}
	return n, nil
}

// nameSig finds out whose signature it is (section 4: it comes without a name).
func (c *Cache) nameSig(fingerprint, text string) (string, error) {
	for _, key := range c.clients {
		sig, err := signature.ParseSignature(key.Name + ":" + text)
		if err != nil {
			return "", fail(http.StatusBadRequest, "cSig: want the base64 of an ed25519 signature")
		}
		if key.Verify(fingerprint, sig) {
			return sig.String(), nil
		}
	}
	return "", fail(http.StatusUnprocessableEntity, "cSig is not a signature of a key that this cache knows")
}
