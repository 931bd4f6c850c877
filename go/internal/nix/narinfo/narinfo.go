// Package narinfo reads and writes the .narinfo files of binary caches, and makes and checks their signatures.
//
// It reads what real caches serve: unknown keys are ignored, a deriver may be "unknown-deriver" or missing. What it
// gives is checked: paths are store paths, hashes and numbers are well-formed.
package narinfo

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nix-community/go-nix/pkg/narinfo/signature"
	"github.com/nix-community/go-nix/pkg/nixbase32"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/storepath"
)

// MaxSize bounds the text of a narinfo: room for tens of thousands of references.
const MaxSize = 4 << 20

// NarInfo is what a cache says of a path.
type NarInfo struct {
	StorePath   string
	URL         string // of the NAR, relative to the cache
	Compression string // "bzip2" where the file does not say
	FileHash    string // as written, empty when not given
	FileSize    uint64 // bytes, 0 when not given
	NarHash     []byte // sha256
	NarSize     uint64 // bytes
	References  []string
	Deriver     string // a store path, or empty
	System      string // of old caches
	Sigs        []string
	CA          string
}

// Parse reads a narinfo.
func Parse(text []byte) (*NarInfo, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("narinfo of %d bytes, more than %d", len(text), MaxSize)
	}
	n := &NarInfo{}
	seen := map[string]bool{}
	line := 0
	for l := range strings.Lines(string(text)) {
		line++
		l = strings.TrimRight(l, "\r\n")
		if l == "" {
			continue
		}
		key, value, ok := strings.Cut(l, ":")
		if !ok {
			return nil, fmt.Errorf("narinfo, line %d: no colon", line)
		}
		// Nix wants exactly one space; hand-made caches have fewer or more.
		value = strings.TrimSpace(value)
		if seen[key] && key != "Sig" && slices.Contains(known, key) {
			return nil, fmt.Errorf("narinfo, line %d: %s twice", line, key)
		}
		seen[key] = true
		if err := n.set(key, value); err != nil {
			return nil, fmt.Errorf("narinfo, line %d: %s: %w", line, key, err)
		}
	}
	if n.Compression == "" {
		n.Compression = "bzip2" // nar-info.cc
	}
	for _, key := range []string{"StorePath", "URL", "NarHash", "NarSize"} {
		if !seen[key] {
			return nil, errors.New("narinfo without " + key)
		}
	}
	return n, nil
}

var known = []string{
	"StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize", "References", "Deriver",
	"System", "CA",
}

func (n *NarInfo) set(key, value string) (err error) {
	switch key {
	case "StorePath":
		n.StorePath = value
		return storepath.Check(value)
	case "URL":
		if value == "" {
			return errors.New("empty")
		}
		n.URL = value
	case "Compression":
		n.Compression = value
	case "FileHash":
		n.FileHash = value
	case "FileSize":
		n.FileSize, err = strconv.ParseUint(value, 10, 64)
	case "NarHash":
		n.NarHash, err = parseSHA256(value)
	case "NarSize":
		if n.NarSize, err = strconv.ParseUint(value, 10, 64); err == nil && n.NarSize == 0 {
			return errors.New("zero")
		}
	case "References":
		n.References, err = parseReferences(value)
	case "Deriver":
		if value != "" && value != "unknown-deriver" {
			n.Deriver, err = parsePath(value)
		}
	case "System":
		n.System = value
	case "Sig":
		if value != "" {
			n.Sigs = append(n.Sigs, value)
		}
	case "CA":
		n.CA = value
	}
	return err
}

func parseReferences(value string) ([]string, error) {
	names := strings.Fields(value)
	if len(names) == 0 {
		return nil, nil
	}
	refs := make([]string, len(names))
	for i, name := range names {
		var err error
		if refs[i], err = parsePath(name); err != nil {
			return nil, err
		}
	}
	slices.Sort(refs)
	return slices.Compact(refs), nil
}

// parsePath takes a base name, or a whole path as some caches have it.
func parsePath(s string) (string, error) {
	if strings.HasPrefix(s, storepath.StoreDir+"/") {
		return s, storepath.Check(s)
	}
	return storepath.ParseBase(s)
}

// parseSHA256 takes sha256:BASE32, sha256:BASE16, sha256:BASE64 and sha256-BASE64 (SRI).
func parseSHA256(value string) ([]byte, error) {
	text, ok := strings.CutPrefix(value, "sha256:")
	if !ok {
		if text, ok = strings.CutPrefix(value, "sha256-"); !ok {
			return nil, fmt.Errorf("hash %q is not of sha256", value)
		}
	}
	var hash []byte
	var err error
	switch len(text) {
	case 52:
		hash, err = nixbase32.DecodeString(text)
	case 64:
		hash, err = hex.DecodeString(text)
	default:
		hash, err = base64.StdEncoding.DecodeString(text)
	}
	if err != nil || len(hash) != sha256.Size {
		return nil, fmt.Errorf("malformed hash %q", value)
	}
	return hash, nil
}

// Append appends the text to b, in the order in which Nix writes it.
func (n *NarInfo) Append(b []byte) []byte {
	line := func(key, value string) {
		b = append(b, key...)
		b = append(b, ": "...)
		b = append(b, value...)
		b = append(b, '\n')
	}
	line("StorePath", n.StorePath)
	line("URL", n.URL)
	line("Compression", n.Compression)
	if n.FileHash != "" {
		line("FileHash", n.FileHash)
	}
	if n.FileSize != 0 {
		line("FileSize", strconv.FormatUint(n.FileSize, 10))
	}
	line("NarHash", hashText(n.NarHash))
	line("NarSize", strconv.FormatUint(n.NarSize, 10))
	refs := make([]string, len(n.References))
	for i, r := range n.References {
		refs[i] = storepath.Base(r)
	}
	line("References", strings.Join(refs, " "))
	if n.Deriver != "" {
		line("Deriver", storepath.Base(n.Deriver))
	}
	if n.System != "" {
		line("System", n.System)
	}
	for _, sig := range n.Sigs {
		line("Sig", sig)
	}
	if n.CA != "" {
		line("CA", n.CA)
	}
	return b
}

func hashText(hash []byte) string { return "sha256:" + nixbase32.EncodeToString(hash) }

// PathInfo is what a store would say of the path.
func (n *NarInfo) PathInfo() *daemon.PathInfo {
	return &daemon.PathInfo{
		Path: n.StorePath, Deriver: n.Deriver, NarHash: n.NarHash, NarSize: n.NarSize,
		References: n.References, Signatures: n.Sigs, ContentAddress: n.CA,
	}
}

// Fingerprint is what is signed of a path: path, hash, size and references.
func Fingerprint(p *daemon.PathInfo) string {
	refs := p.References
	if !slices.IsSorted(refs) {
		refs = slices.Sorted(slices.Values(refs))
	}
	return "1;" + p.Path + ";" + hashText(p.NarHash) + ";" + strconv.FormatUint(p.NarSize, 10) + ";" + strings.Join(refs, ",")
}

// Verify gives the names of the keys that made a good signature of the path. Keys are as in trusted-public-keys; a
// malformed key is an error, a malformed signature is not one.
func Verify(p *daemon.PathInfo, publicKeys []string) ([]string, error) {
	keys := make([]signature.PublicKey, len(publicKeys))
	for i, text := range publicKeys {
		var err error
		if keys[i], err = signature.ParsePublicKey(text); err != nil {
			return nil, fmt.Errorf("public key %q: %w", text, err)
		}
	}
	fingerprint := Fingerprint(p)
	var good []string
	for _, text := range p.Signatures {
		sig, err := signature.ParseSignature(text)
		if err != nil {
			continue // of another kind; Nix too passes over it
		}
		for _, key := range keys {
			if key.Name == sig.Name && key.Verify(fingerprint, sig) && !slices.Contains(good, key.Name) {
				good = append(good, key.Name)
			}
		}
	}
	return good, nil
}
