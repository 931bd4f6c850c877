package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nix-community/go-nix/pkg/narinfo/signature"

	"hercules/internal/coordinator/cache/narfile"
	"hercules/internal/coordinator/cache/storage"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
)

const narinfoExt = ".narinfo"

func narinfoKey(hash string) string { return hash + narinfoExt }

func isNarinfo(key string) bool {
	return strings.HasSuffix(key, narinfoExt) && !strings.Contains(key, "/")
}

// maxSigs bounds the signatures of a path.
const maxSigs = 64

// publish makes a path visible. Its NAR must be there and be what the narinfo says of it. A path that is there already
// stays as it is and gets new signatures: two machines that built it differently both have pushed it.
func (c *Cache) publish(ctx context.Context, n *narinfo.NarInfo) error {
	file, err := narFile(n)
	if err != nil {
		return err
	}
	f, err := c.narFacts(ctx, file)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(http.StatusFailedDependency, "the NAR %s is not here: it is to be uploaded before its narinfo", n.URL)
	} else if err != nil {
		return err
	}
	if err := compare(n, f); err != nil {
		return err
	}
	n.URL, n.Compression, n.FileSize = f.Key(), f.Compression, uint64(f.FileSize)
	n.FileHash = "sha256:" + f.File.String()
	if err := c.checkSignatures(n); err != nil {
		return err
	}

	hash := storepath.HashPart(n.StorePath)
	c.publishing.RLock()
	defer c.publishing.RUnlock()
	defer c.lockPath(hash[0], hash[1])()
	old, err := c.readNarinfo(ctx, hash)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if old != nil {
		c.mark(ctx, narinfoKey(hash))
		if !slices.Equal(old.NarHash, n.NarHash) || !slices.Equal(old.References, n.References) || old.StorePath != n.StorePath {
			c.log.Info("pushed again with other contents, the first stay", "path", n.StorePath)
			return nil
		}
		sigs := mergeSigs(old.Sigs, n.Sigs)
		if len(sigs) == len(old.Sigs) {
			return nil
		}
		old.Sigs = sigs
		return c.writeNarinfo(ctx, hash, old, true)
	}
	if _, err := c.storage.Stat(ctx, n.URL); err != nil { // collected since
		return fail(http.StatusFailedDependency, "the NAR %s is not here: it is to be uploaded before its narinfo", n.URL)
	}
	if err := c.checkReferences(ctx, n); err != nil {
		return err
	}
	if err := c.sign(n); err != nil {
		return err
	}
	if err := c.writeNarinfo(ctx, hash, n, false); err != nil {
		return err
	}
	c.freshMu.Lock()
	if c.fresh != nil {
		c.fresh[hash] = true
	}
	c.freshMu.Unlock()
	c.count.paths.Add(1)
	c.count.uploaded.Add(1)
	c.log.Debug("store path added", "path", n.StorePath, "narSize", n.NarSize, "fileSize", n.FileSize)
	return nil
}

// narFile is the hash of a narinfo's NAR file: FileHash, or else what the URL is named after.
func narFile(n *narinfo.NarInfo) (narfile.Digest, error) {
	if text, ok := strings.CutPrefix(n.FileHash, "sha256:"); ok {
		d, err := narfile.ParseDigest(text)
		if err != nil {
			return d, fail(http.StatusBadRequest, "FileHash: %s", err)
		}
		return d, nil
	} else if n.FileHash != "" {
		return narfile.Digest{}, fail(http.StatusBadRequest, "FileHash: want sha256:<hash>")
	}
	return narName(path.Base(n.URL))
}

// narName reads the name of a NAR that a client gave.
func narName(name string) (narfile.Digest, error) {
	d, err := narfile.ParseName(name)
	if err != nil {
		return d, fail(http.StatusBadRequest, "%s", err)
	}
	return d, nil
}

// compare holds what a narinfo says against what is true.
func compare(n *narinfo.NarInfo, f narfile.Facts) error {
	switch {
	case !slices.Equal(n.NarHash, f.Nar[:]):
		return fail(http.StatusUnprocessableEntity, "NarHash differs: the uploaded NAR has sha256:%s", f.Nar)
	case n.NarSize != uint64(f.NarSize):
		return fail(http.StatusUnprocessableEntity, "NarSize differs: the uploaded NAR has %d bytes", f.NarSize)
	case n.FileSize != 0 && n.FileSize != uint64(f.FileSize):
		return fail(http.StatusUnprocessableEntity, "FileSize differs: the uploaded file has %d bytes", f.FileSize)
	case n.Compression != f.Compression:
		return fail(http.StatusUnprocessableEntity, "Compression differs: the uploaded file is %s", f.Compression)
	}
	return nil
}

// checkSignatures refuses signatures that are bad as far as can be told.
func (c *Cache) checkSignatures(n *narinfo.NarInfo) error {
	if len(n.Sigs) > maxSigs {
		return fail(http.StatusBadRequest, "more than %d signatures", maxSigs)
	}
	fingerprint := narinfo.Fingerprint(n.PathInfo())
	for _, text := range n.Sigs {
		sig, err := signature.ParseSignature(text)
		if err != nil {
			return fail(http.StatusBadRequest, "malformed signature %q", text)
		}
		for _, key := range c.clients {
			if key.Name == sig.Name && !key.Verify(fingerprint, sig) {
				return fail(http.StatusUnprocessableEntity, "the signature of %s is bad", sig.Name)
			}
		}
	}
	return nil
}

func mergeSigs(old, more []string) []string {
	merged := slices.Clone(old)
	for _, s := range more {
		if !slices.Contains(merged, s) && len(merged) < maxSigs {
			merged = append(merged, s)
		}
	}
	return merged
}

// sign adds the cache's own signature.
func (c *Cache) sign(n *narinfo.NarInfo) error {
	sig, err := c.key.Sign(rand.Reader, narinfo.Fingerprint(n.PathInfo()))
	if err != nil {
		return fmt.Errorf("sign %s: %w", n.StorePath, err)
	}
	n.Sigs = mergeSigs([]string{sig.String()}, n.Sigs)
	return nil
}

func (c *Cache) checkReferences(ctx context.Context, n *narinfo.NarInfo) error {
	if c.o.AllowMissingReferences {
		return nil
	}
	for _, ref := range n.References {
		if ref == n.StorePath {
			continue
		}
		if _, err := c.storage.Stat(ctx, narinfoKey(storepath.HashPart(ref))); errors.Is(err, fs.ErrNotExist) {
			return fail(http.StatusFailedDependency, "%s refers to %s, which is not in this cache: it is to be pushed first",
				n.StorePath, ref)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) readNarinfo(ctx context.Context, hash string) (*narinfo.NarInfo, error) {
	data, err := c.readAll(ctx, narinfoKey(hash), narinfo.MaxSize+maxSigs*256)
	if err != nil {
		return nil, err
	}
	n, err := narinfo.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("stored %s: %w", narinfoKey(hash), err)
	}
	return n, nil
}

func (c *Cache) writeNarinfo(ctx context.Context, hash string, n *narinfo.NarInfo, replace bool) error {
	return c.putBytes(ctx, narinfoKey(hash), n.Append(nil), replace)
}

// putBytes stores a small file and counts it.
func (c *Cache) putBytes(ctx context.Context, key string, data []byte, replace bool) error {
	var before int64
	if replace {
		if old, err := c.storage.Stat(ctx, key); err == nil {
			before = old.Size
		}
	}
	size := int64(len(data))
	if err := c.space.Take(size); err != nil {
		return err
	}
	if err := c.storage.PutBytes(ctx, key, data, c.tmp()); err != nil {
		c.space.Give(size)
		return err
	}
	c.space.Give(before)
	return nil
}

// readAll reads a small file.
func (c *Cache) readAll(ctx context.Context, key string, limit int64) ([]byte, error) {
	r, st, err := c.storage.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if st.Size > limit {
		return nil, fmt.Errorf("stored %s has %d bytes", key, st.Size)
	}
	data := make([]byte, st.Size)
	_, err = io.ReadFull(r, data)
	return data, err
}

// touchEvery bounds how often reading a file becomes writing to the disk.
const touchEvery = 10 * time.Minute

// touch notes that a file is wanted. Its time is that of the last access, for [Policy].
func (c *Cache) touch(ctx context.Context, f storage.File) {
	if c.now().Sub(f.Time) >= touchEvery {
		c.mark(ctx, f.Key)
	}
}

// mark is touch at any time, for a file that somebody counts on to be there in a moment.
func (c *Cache) mark(ctx context.Context, key string) {
	if err := c.storage.Touch(ctx, key, c.now()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("noting an access", "file", key, "error", err)
	}
}

// lockPath keeps others off a path or file while it is looked at and then written.
func (c *Cache) lockPath(b ...byte) (unlock func()) {
	sum := uint(0)
	for _, x := range b {
		sum = sum*31 + uint(x)
	}
	mu := &c.paths[sum%uint(len(c.paths))]
	mu.Lock()
	return mu.Unlock
}
