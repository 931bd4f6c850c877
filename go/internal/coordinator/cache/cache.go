// Package cache is a binary cache in a box: an HTTP handler that takes store paths and gives them out again, and a
// directory that keeps them. It speaks the plain protocol of Nix's binary caches (`nix copy --to http://…` works) and
// the Cachix push protocol, as docs/cachix-protocol.md has it.
//
// What is visible is complete and right: every NAR is decompressed and hashed on its way in, a narinfo appears last and
// only when its NAR and (by default) its references are there, and garbage collection removes no path that a kept one
// refers to. This holds at every moment, also when the process is killed or the disk is full.
//
// It knows store paths and bytes. It must not know of jobs, agents and who may use which cache.
package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nix-community/go-nix/pkg/narinfo/signature"

	"hercules/internal/atomicfile"
	"hercules/internal/coordinator/cache/storage"
	"hercules/internal/nix/storepath"
	"hercules/internal/secrets"
)

// Options configure a cache. Name alone must be set; without write tokens nobody can push.
type Options struct {
	// Name is the cache's name in the Cachix API: letters, digits, dashes, underscores and dots.
	Name string
	// Public caches are read without a token.
	Public bool
	// ReadTokens are good for reading, WriteTokens for reading and pushing. They are sent as bearer token or as the
	// password of basic authentication, with any login.
	ReadTokens, WriteTokens []secrets.Sensitive

	// SigningKey is the key that signs everything, in Nix's format. Unset, there is a key in the cache's directory, made
	// on the first start and named KeyName, which is by default Name + "-1".
	SigningKey secrets.Sensitive
	KeyName    string
	// ClientKeys are public keys of those who push. A signature that claims to be of one of them must be good, and the
	// nameless signatures of the Cachix protocol must be of one of them.
	ClientKeys []string

	// Priority is told to Nix: lower is asked first. The default is 30; cache.nixos.org has 40.
	Priority int
	// BaseURL is the URL under which clients reach the handler, where it cannot be told from the request.
	BaseURL string
	// AllowMissingReferences takes paths whose references the cache does not have. Closures may be incomplete then.
	AllowMissingReferences bool

	// MaxNarSize is the size of the largest NAR, compressed or not; 64 GiB.
	MaxNarSize int64
	// MaxSize bounds all files together, and uploads on their way. 0: no bound.
	MaxSize int64
	// FreeReserve is the space that is left to others on the file system.
	FreeReserve int64
	// MaxUploads is how many requests upload or verify at once; others wait. The default is four for each processor.
	MaxUploads int
	// Idle is how long a transfer may stand still before it is cut off; 2 min.
	Idle time.Duration
	// NoSync leaves out flushing to disk: faster, and a power cut (not a crash) may damage what was last added.
	NoSync bool

	// Storage keeps the files instead of the cache's directory, which still has the key and temporary files.
	Storage storage.Storage
	Log     *slog.Logger
}

// Cache is an open cache.
type Cache struct {
	o       Options
	dir     string
	log     *slog.Logger
	storage storage.Storage
	space   *storage.Space
	facts   factsCache
	key     signature.SecretKey
	public  string
	clients []signature.PublicKey
	lock    *os.File
	now     func() time.Time

	slots   chan struct{}
	uploads uploads
	paths   [64]sync.Mutex // by store path: two publishers of one path take turns

	// publishing is held for reading while a path becomes visible, for writing while others disappear.
	publishing sync.RWMutex
	collecting sync.Mutex
	fresh      map[string]bool // while collecting: hash parts of published paths
	freshMu    sync.Mutex

	count counters
}

type counters struct {
	paths, hits, misses, uploaded, rejected atomic.Int64
	active                                  atomic.Int64
}

// Stats are figures of an open cache.
type Stats struct {
	Paths          int64 // visible store paths
	Bytes          int64 // of all files, and of uploads on their way
	Hits, Misses   int64 // of narinfo requests since the start
	Added          int64 // paths since the start
	Rejected       int64 // uploads that were not taken, since the start
	ActiveUploads  int64 // requests that are uploading now
	PendingUploads int   // multipart uploads that are not complete yet
}

const (
	keyFile     = "signing-key"
	lockFile    = "lock"
	tmpDir      = "tmp"
	storageDir  = "cache"
	defaultSize = 64 << 30
)

// Open opens the cache in a directory, which is created. One process at a time can have it open; what a killed one
// left behind half-done is removed.
func Open(dir string, o Options) (*Cache, error) {
	if err := checkOptions(&o); err != nil {
		return nil, fmt.Errorf("cache %s: %w", dir, err)
	}
	c := &Cache{o: o, dir: dir, log: o.Log, now: time.Now, slots: make(chan struct{}, o.MaxUploads)}
	if err := c.open(); err != nil {
		c.unlock()
		return nil, fmt.Errorf("cache %s: %w", dir, err)
	}
	return c, nil
}

func checkOptions(o *Options) error {
	if o.Name == "" || strings.Trim(o.Name, nameCharacters) != "" || strings.Trim(o.Name, ".") == "" {
		return fmt.Errorf("name %q: want letters, digits, dashes, underscores and dots", o.Name)
	}
	if o.KeyName == "" {
		o.KeyName = o.Name + "-1"
	}
	if strings.ContainsAny(o.KeyName, ": \t\n") {
		return fmt.Errorf("key name %q: colons and white space cannot be in it", o.KeyName)
	}
	for _, t := range append(append([]secrets.Sensitive(nil), o.ReadTokens...), o.WriteTokens...) {
		if t.Empty() {
			return errors.New("an empty token would let everybody in")
		}
	}
	o.Priority = orDefault(o.Priority, 30)
	o.MaxNarSize = orDefault(o.MaxNarSize, defaultSize)
	o.MaxUploads = orDefault(o.MaxUploads, 4*runtime.GOMAXPROCS(0))
	o.Idle = orDefault(o.Idle, 2*time.Minute)
	o.BaseURL = strings.TrimSuffix(o.BaseURL, "/")
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

const nameCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

func orDefault[T int | int64 | time.Duration](value, otherwise T) T {
	if value <= 0 {
		return otherwise
	}
	return value
}

func (c *Cache) open() error {
	mode := fs.FileMode(0o755)
	if !c.o.Public {
		mode = 0o700
	}
	if err := os.MkdirAll(c.dir, mode); err != nil {
		return err
	}
	var err error
	if c.lock, err = storage.LockDir(filepath.Join(c.dir, lockFile)); err != nil {
		return err
	}
	// Nothing in there has ever been visible.
	if err := os.RemoveAll(filepath.Join(c.dir, tmpDir)); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(c.dir, tmpDir), 0o700); err != nil {
		return err
	}
	if err := c.loadKeys(); err != nil {
		return err
	}
	if c.storage = c.o.Storage; c.storage == nil {
		if c.storage, err = storage.NewDisk(filepath.Join(c.dir, storageDir), mode, !c.o.NoSync); err != nil {
			return err
		}
	}
	c.space = &storage.Space{Dir: c.dir, Max: c.o.MaxSize, Reserve: c.o.FreeReserve}
	c.uploads.init()
	ctx := context.Background()
	err = c.storage.List(ctx, "", func(f storage.File) error {
		c.space.Count(f.Size)
		if isNarinfo(f.Key) {
			c.count.paths.Add(1)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// For those who read the directory itself, as file:// or through another web server.
	if old, err := c.readAll(ctx, "nix-cache-info", 1<<10); err == nil && string(old) == string(c.info()) {
		return nil // and so a full disk can still be opened, and collected
	}
	return c.storage.PutBytes(ctx, "nix-cache-info", c.info(), c.tmp())
}

// loadKeys reads the signing key, or makes it.
func (c *Cache) loadKeys() error {
	text := c.o.SigningKey.Reveal()
	file := filepath.Join(c.dir, keyFile)
	if text == "" {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			secret, _, err := signature.GenerateKeypair(c.o.KeyName, rand.Reader)
			if err != nil {
				return err
			}
			data = []byte(secret.String() + "\n")
			if err := atomicfile.Write(file, data, 0o600); err != nil {
				return err
			}
		} else if err != nil {
			return err
		} else if st, err := os.Stat(file); err == nil && st.Mode().Perm()&0o077 != 0 {
			c.log.Warn("the cache's signing key can be read by others", "file", file, "mode", st.Mode().Perm().String())
		}
		text = strings.TrimSpace(string(data))
	}
	var err error
	// The error of the library may have a part of the key in it.
	if c.key, err = signature.LoadSecretKey(strings.TrimSpace(text)); err != nil {
		return errors.New("malformed signing key: want name:base64 of an ed25519 secret key")
	}
	c.public = c.key.ToPublicKey().String()
	for _, text := range append([]string{c.public}, c.o.ClientKeys...) {
		key, err := signature.ParsePublicKey(text)
		if err != nil {
			return fmt.Errorf("public key %q: %w", text, err)
		}
		c.clients = append(c.clients, key)
	}
	return nil
}

// PublicKey is what goes into trusted-public-keys of those who substitute from the cache.
func (c *Cache) PublicKey() string { return c.public }

// Name is the cache's name.
func (c *Cache) Name() string { return c.o.Name }

// Close lets another process open the directory. Requests must have ended.
func (c *Cache) Close() error {
	c.uploads.dropAll()
	return c.unlock()
}

func (c *Cache) unlock() error {
	if c.lock == nil {
		return nil
	}
	return c.lock.Close()
}

// Stats gives figures.
func (c *Cache) Stats() Stats {
	return Stats{
		Paths: c.count.paths.Load(), Bytes: c.space.Used(),
		Hits: c.count.hits.Load(), Misses: c.count.misses.Load(),
		Added: c.count.uploaded.Load(), Rejected: c.count.rejected.Load(),
		ActiveUploads: c.count.active.Load(), PendingUploads: c.uploads.len(),
	}
}

func (c *Cache) tmp() string { return filepath.Join(c.dir, tmpDir) }

// info is nix-cache-info.
func (c *Cache) info() []byte {
	return []byte("StoreDir: " + storepath.StoreDir + "\nWantMassQuery: 1\nPriority: " + strconv.Itoa(c.o.Priority) + "\n")
}
