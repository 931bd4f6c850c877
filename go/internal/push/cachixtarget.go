package push

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"io"
	"os/exec"
	"sync"

	"github.com/nix-community/go-nix/pkg/nixbase32"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
	"hercules/internal/push/cachix"
	"hercules/internal/push/pack"
)

// cachixLevel of xz: agent-behaviour 5.2.
const cachixLevel = 2

// cachixTarget is a cache that speaks the Cachix protocol.
type cachixTarget struct {
	client *cachix.Client
	packer *pack.Packer
	key    ed25519.PrivateKey // nil: the service signs

	mu          sync.Mutex
	chosen      bool
	compression pack.Compression
}

// Missing implements target.
func (t *cachixTarget) Missing(ctx context.Context, paths []string) ([]string, error) {
	byHash := make(map[string]string, len(paths))
	hashes := make([]string, len(paths))
	for i, p := range paths {
		hashes[i] = storepath.HashPart(p)
		byHash[hashes[i]] = p
	}
	lacks, err := t.client.Missing(ctx, hashes)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, h := range lacks {
		if p, asked := byHash[h]; asked {
			missing = append(missing, p)
		}
	}
	return missing, nil
}

// method is that of the configuration, or what the service prefers.
func (t *cachixTarget) method(ctx context.Context) (pack.Compression, error) {
	t.mu.Lock()
	chosen, c := t.chosen, t.compression
	t.mu.Unlock()
	if chosen {
		return c, nil
	}
	info, err := t.client.Info(ctx)
	if err != nil {
		return c, err
	}
	level := c.Level
	c = pack.Compression{Method: pack.XZ, Level: cachixLevel}
	if info.PreferredCompressionMethod == "ZSTD" {
		c = pack.Compression{Method: pack.Zstd}
	} else if _, err := exec.LookPath("xz"); err != nil {
		c = pack.Compression{Method: pack.Zstd} // the service takes both
	}
	if level != 0 {
		c.Level = level
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.chosen, t.compression = true, c
	return c, c.Check()
}

// Upload implements target.
func (t *cachixTarget) Upload(ctx context.Context, info *daemon.PathInfo, src func(io.Writer) error, check func(pack.Result) error) (
	commit func(context.Context) error, sent uint64, err error,
) {
	c, err := t.method(ctx)
	if err != nil {
		return nil, 0, err
	}
	extension := "xz"
	if c.Method == pack.Zstd {
		extension = "zst"
	}
	u, err := t.client.Start(ctx, extension, info.NarSize)
	if err != nil {
		return nil, 0, err
	}
	result, err := t.packer.Pack(ctx, c, info.NarSize, u, src)
	if err == nil {
		err = check(result)
	}
	if err == nil {
		err = u.Flush()
	}
	if err != nil {
		u.Abort(err)
		return nil, 0, err
	}
	n := &cachix.NarInfo{
		StoreHash: storepath.HashPart(info.Path), StoreSuffix: storepath.Name(info.Path),
		NarHash: "sha256:" + nixbase32.EncodeToString(info.NarHash), NarSize: info.NarSize,
		FileHash: hex.EncodeToString(result.FileHash[:]), FileSize: result.FileSize,
		References: make([]string, len(info.References)), Deriver: "unknown-deriver",
	}
	for i, ref := range sortedUnique(info.References) {
		n.References[i] = storepath.Base(ref)
	}
	if info.Deriver != "" {
		n.Deriver = storepath.Base(info.Deriver)
	}
	if t.key != nil {
		sig := base64.StdEncoding.EncodeToString(ed25519.Sign(t.key, []byte(narinfo.Fingerprint(info))))
		n.Sig = &sig
	}
	return func(ctx context.Context) error {
		err := u.Complete(ctx, n)
		if err != nil {
			u.Abort(err)
		}
		return err
	}, result.FileSize, nil
}

// Close implements target.
func (t *cachixTarget) Close() {}
