package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"time"

	"hercules/internal/coordinator/cache/narfile"
	"hercules/internal/coordinator/cache/storage"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
)

// Policy says what [Cache.Collect] removes.
//
// A path's age counts from its last access: the last time its narinfo or NAR was asked for (also by a push that finds
// it present), give or take ten minutes, or else from its upload. A path is at least as young as every path that refers to it, so
// that no kept path loses a reference.
type Policy struct {
	// Roots are store paths whose closures stay, whatever else is said.
	Roots []string
	// OnlyRoots removes everything else that is older than Grace.
	OnlyRoots bool
	// MaxAge removes what is older. 0: nothing is too old. Build logs and realisations go by it alone.
	MaxAge time.Duration
	// MaxSize removes the longest unused paths until all files together have no more bytes. 0: no limit.
	MaxSize int64
	// Grace protects what is younger from everything: a client that has just been told that a path is there may be
	// about to push one that refers to it, and a NAR without narinfo may be about to get one. The default is an hour.
	Grace time.Duration
	// DryRun only finds out what would be removed.
	DryRun bool
}

// Collected is what a collection did.
type Collected struct {
	Paths, Files int64    // removed: store paths, and files that belong to none
	Bytes        int64    // freed
	Kept         int64    // store paths that stay
	MissingRoots []string // roots that are not in the cache
}

// node is a path as the collector sees it.
type node struct {
	hash, path string
	refs       []string // hash parts
	nar        string   // key
	size       int64    // of the narinfo
	time       time.Time
	access     int64 // unix nanoseconds; math.MaxInt64 for roots
}

// batch is how many paths disappear at a time; publishers wait that long.
const batch = 200

// Collect removes what a policy does not keep. The cache may be in full use meanwhile: readers of a removed NAR finish,
// and a path that is published while the collector runs keeps its references.
func (c *Cache) Collect(ctx context.Context, p Policy) (Collected, error) {
	c.collecting.Lock()
	defer c.collecting.Unlock()
	if p.Grace <= 0 {
		p.Grace = time.Hour
	}
	c.uploads.expire(c, c.now())
	c.watchPublished(true)
	defer c.watchPublished(false)
	g, err := c.scan(ctx)
	if err != nil {
		return Collected{}, fmt.Errorf("collect %s: %w", c.o.Name, err)
	}
	var done Collected
	order := g.byUse(p.Roots, &done.MissingRoots)
	victims := g.choose(p, order, c.now(), c.space.Used())
	if err := c.remove(ctx, g, victims, p, &done); err != nil {
		return done, fmt.Errorf("collect %s: %w", c.o.Name, err)
	}
	done.Kept = int64(len(g.nodes))
	if done.Paths > 0 || done.Files > 0 {
		c.log.Info("cache collected", "paths", done.Paths, "files", done.Files, "bytes", done.Bytes, "kept", done.Kept,
			"dryRun", p.DryRun)
	}
	return done, nil
}

func (c *Cache) watchPublished(on bool) {
	// Whoever is publishing now is seen by the scan.
	c.publishing.Lock()
	defer c.publishing.Unlock()
	c.fresh = nil
	if on {
		c.fresh = map[string]bool{}
	}
}

// graph is the contents of a cache at one moment.
type graph struct {
	nodes map[string]*node
	files map[string]storage.File // all but narinfos
	users map[string]int          // of NARs
}

func (c *Cache) scan(ctx context.Context) (*graph, error) {
	g := &graph{nodes: map[string]*node{}, files: map[string]storage.File{}, users: map[string]int{}}
	var infos []storage.File
	err := c.storage.List(ctx, "", func(f storage.File) error {
		switch {
		case isNarinfo(f.Key):
			infos = append(infos, f)
		case f.Key != "nix-cache-info":
			g.files[f.Key] = f
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, f := range infos {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		hash := strings.TrimSuffix(f.Key, narinfoExt)
		n, err := c.readNarinfo(ctx, hash)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			// Removing what it may refer to would be wrong, and so would be never to collect again.
			return nil, fmt.Errorf("%w (Verify can remove it)", err)
		}
		g.add(hash, n, f)
	}
	return g, nil
}

func (g *graph) add(hash string, n *narinfo.NarInfo, f storage.File) {
	v := &node{hash: hash, path: n.StorePath, nar: n.URL, size: f.Size, time: f.Time, access: f.Time.UnixNano()}
	if nar, ok := g.files[n.URL]; ok {
		v.access = max(v.access, nar.Time.UnixNano())
	}
	for _, ref := range n.References {
		if h := storepath.HashPart(ref); h != hash {
			v.refs = append(v.refs, h)
		}
	}
	g.nodes[hash] = v
	g.users[v.nar]++
}

// byUse makes every path as young as those that refer to it, and gives all paths such that the least used come
// first, and each before what it refers to.
func (g *graph) byUse(roots []string, missing *[]string) []*node {
	for _, root := range roots {
		if v := g.nodes[storepath.HashPart(root)]; v != nil && v.path == root {
			v.access = math.MaxInt64
		} else {
			*missing = append(*missing, root)
		}
	}
	start := make([]*node, 0, len(g.nodes))
	for _, v := range g.nodes {
		start = append(start, v)
	}
	slices.SortFunc(start, func(a, b *node) int {
		return cmp.Or(cmp.Compare(b.access, a.access), cmp.Compare(a.hash, b.hash))
	})
	// Depth first from the youngest on: whoever is reached first is reached by the youngest of its referrers. It is put
	// down after its references, and the reverse of that is wanted. No recursion: graphs can be deep.
	order := make([]*node, 0, len(start))
	seen := make(map[*node]bool, len(start))
	type frame struct {
		v    *node
		next int
	}
	var stack []frame
	for _, s := range start {
		if seen[s] {
			continue
		}
		seen[s] = true
		stack = append(stack, frame{v: s})
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.next == len(top.v.refs) {
				order = append(order, top.v)
				stack = stack[:len(stack)-1]
				continue
			}
			ref := g.nodes[top.v.refs[top.next]]
			top.next++
			if ref != nil && !seen[ref] {
				seen[ref] = true
				ref.access = s.access
				stack = append(stack, frame{v: ref})
			}
		}
	}
	slices.Reverse(order)
	return order
}

// choose takes victims from the front of the order, so that what stays is closed.
func (g *graph) choose(p Policy, order []*node, now time.Time, used int64) []*node {
	graceEnd := now.Add(-p.Grace).UnixNano()
	tooOld := int64(math.MinInt64)
	if p.MaxAge > 0 {
		tooOld = now.Add(-p.MaxAge).UnixNano()
	}
	users := make(map[string]int, len(g.users))
	for nar, n := range g.users {
		users[nar] = n
	}
	for key, f := range g.files { // orphans go anyway
		if g.orphan(key) && f.Time.UnixNano() < graceEnd {
			used -= f.Size
		}
	}
	for i, v := range order {
		young := v.access >= graceEnd
		wanted := v.access >= tooOld && !p.OnlyRoots && (p.MaxSize <= 0 || used <= p.MaxSize)
		if young || wanted || v.access == math.MaxInt64 {
			return order[:i]
		}
		used -= v.size + g.files[v.hash+".ls"].Size
		if users[v.nar]--; users[v.nar] == 0 {
			used -= g.files[v.nar].Size
		}
	}
	return order
}

// orphan tells whether a NAR or listing belongs to no path.
func (g *graph) orphan(key string) bool {
	if hash, ok := strings.CutSuffix(key, ".ls"); ok && !strings.Contains(key, "/") {
		return g.nodes[hash] == nil
	}
	return strings.HasPrefix(key, "nar/") && g.users[key] == 0
}

// remove removes paths, each before what it refers to, and then the files that belong to none.
func (c *Cache) remove(ctx context.Context, g *graph, victims []*node, p Policy, done *Collected) error {
	keep := map[string]bool{}
	for len(victims) > 0 {
		n := min(batch, len(victims))
		if err := c.removeBatch(ctx, g, victims[:n], keep, p.DryRun, done); err != nil {
			return err
		}
		victims = victims[n:]
	}
	now := c.now()
	graceEnd := now.Add(-p.Grace)
	for key, f := range g.files {
		if err := ctx.Err(); err != nil {
			return err
		}
		byAge := strings.HasPrefix(key, "log/") || strings.HasPrefix(key, "realisations/") || strings.HasPrefix(key, "build-trace-v2/")
		if byAge && p.MaxAge > 0 && f.Time.Before(now.Add(-max(p.MaxAge, p.Grace))) || g.orphan(key) && f.Time.Before(graceEnd) {
			if err := c.removeOrphan(ctx, g, f, p.DryRun, done); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeBatch makes some paths invisible, then removes their NARs. No one publishes meanwhile.
func (c *Cache) removeBatch(ctx context.Context, g *graph, victims []*node, keep map[string]bool, dry bool, done *Collected) error {
	c.publishing.Lock()
	defer c.publishing.Unlock()
	if err := c.keepReferences(ctx, g, keep); err != nil {
		return err
	}
	var files []storage.File
	for _, v := range victims {
		if err := ctx.Err(); err != nil {
			return err
		}
		st, err := c.storage.Stat(ctx, narinfoKey(v.hash))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		if st.Time.After(v.time) { // somebody has been told since that it is here
			g.spare(keep, v.hash)
		}
		if keep[v.hash] {
			continue
		}
		if !dry {
			if err := c.storage.Delete(ctx, st.Key); err != nil {
				return err
			}
			c.count.paths.Add(-1)
			c.space.Give(st.Size)
		}
		delete(g.nodes, v.hash)
		done.Paths++
		done.Bytes += st.Size
		if f, ok := g.files[v.hash+".ls"]; ok {
			files = append(files, f)
		}
		if g.users[v.nar]--; g.users[v.nar] == 0 {
			if f, ok := g.files[v.nar]; ok {
				files = append(files, f)
			}
		}
	}
	if !dry {
		// A narinfo must not come back after a power cut when its NAR does not.
		if err := c.storage.Flush(ctx); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := c.deleteFile(ctx, g, f, dry, done); err != nil {
			return err
		}
	}
	return nil
}

// keepReferences spares what paths refer to that have been published since the scan.
func (c *Cache) keepReferences(ctx context.Context, g *graph, keep map[string]bool) error {
	c.freshMu.Lock()
	defer c.freshMu.Unlock()
	for hash := range c.fresh {
		delete(c.fresh, hash)
		if g.nodes[hash] == nil {
			n, err := c.readNarinfo(ctx, hash)
			if err != nil {
				return err
			}
			g.add(hash, n, storage.File{})
		}
		g.spare(keep, hash)
	}
	return nil
}

// spare keeps a path and all that it refers to.
func (g *graph) spare(keep map[string]bool, hash string) {
	for stack := []string{hash}; len(stack) > 0; {
		hash, stack = stack[len(stack)-1], stack[:len(stack)-1]
		if v := g.nodes[hash]; v != nil && !keep[hash] {
			keep[hash] = true
			stack = append(stack, v.refs...)
		}
	}
}

// removeOrphan removes a file of no path, unless it has become one's.
func (c *Cache) removeOrphan(ctx context.Context, g *graph, f storage.File, dry bool, done *Collected) error {
	c.publishing.Lock()
	defer c.publishing.Unlock()
	if err := c.keepReferences(ctx, g, map[string]bool{}); err != nil {
		return err
	}
	if st, err := c.storage.Stat(ctx, f.Key); err != nil || st.Time.After(f.Time) || strings.HasPrefix(f.Key, "nar/") && g.users[f.Key] > 0 {
		return ignoreMissing(err) // gone, or wanted again
	}
	done.Files++
	return c.deleteFile(ctx, g, f, dry, done)
}

// deleteFile deletes a file and accounts for it.
func (c *Cache) deleteFile(ctx context.Context, g *graph, f storage.File, dry bool, done *Collected) error {
	delete(g.files, f.Key)
	done.Bytes += f.Size
	if dry {
		return nil
	}
	if err := c.storage.Delete(ctx, f.Key); err != nil {
		return err
	}
	if name, ok := strings.CutPrefix(f.Key, "nar/"); ok {
		if d, err := narfile.ParseName(name); err == nil {
			c.facts.drop(d)
		}
	}
	c.space.Give(f.Size)
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
