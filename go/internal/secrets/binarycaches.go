package secrets

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"hercules/internal/config/tree"
	"hercules/internal/formats"
)

// BinaryCache is an entry of binary-caches.json.
type BinaryCache struct {
	Name        string
	Kind        formats.Kind // formats.KindCachixCache or formats.KindNixCache
	StoreURI    string       // of a NixCache
	PublicKeys  []string
	SigningKeys []Sensitive
	AuthToken   Sensitive // of a CachixCache, may be empty

	// How to upload, where the file says so.
	Compression      string // none, xz, zstd, gzip …; empty: not said
	CompressionLevel int    // 0: not said
	Concurrency      int    // uploads at once; 0: not said
	APIBaseURL       string // of the service of a CachixCache; empty: the public one
}

// PullOnly says that nothing can be pushed to the cache, because it has neither a signing key nor a token.
func (c *BinaryCache) PullOnly() bool {
	return c.Kind == formats.KindCachixCache && len(c.SigningKeys) == 0 && c.AuthToken.Empty()
}

// BinaryCaches is a file binary-caches.json (agent-behaviour §2.4).
type BinaryCaches struct {
	Caches   []BinaryCache // in the order of their names
	Warnings []string      // for the log
}

// PushCaches gives the names of the caches of a kind that can be pushed to; of all kinds, when none is given.
func (b *BinaryCaches) PushCaches(kinds ...formats.Kind) []string {
	names := []string{}
	for _, c := range b.Caches {
		if !c.PullOnly() && (len(kinds) == 0 || slices.Contains(kinds, c.Kind)) {
			names = append(names, c.Name)
		}
	}
	return names
}

// ReadBinaryCaches reads the file. Every entry that is wrong is named in the error.
func ReadBinaryCaches(path string) (*BinaryCaches, error) {
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("binary caches: %w; the file has to exist, with {} in it when this agent is alone and needs no cache (setting binaryCachesPath)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("binary caches: %w", err)
	}
	return ParseBinaryCaches(path, data)
}

// ParseBinaryCaches is ReadBinaryCaches of a content; the path is for the messages.
func ParseBinaryCaches(path string, data []byte) (*BinaryCaches, error) {
	root, err := tree.ParseJSON(data)
	if err != nil {
		return nil, fmt.Errorf("binary caches: %s:%w", path, err)
	}
	if root.Kind != tree.Table {
		return nil, fmt.Errorf("binary caches: %s:%s: expected an object that maps names to caches", path, root.Pos)
	}
	b := new(BinaryCaches)
	var errs []error
	for _, e := range root.Entries {
		c, err := parseCache(e.Name, e.Value)
		switch {
		case errors.Is(err, errUnknownKind):
			b.Warnings = append(b.Warnings, fmt.Sprintf("%s:%s: %q: %v; the entry is ignored", path, e.Pos, e.Name, err))
		case err != nil:
			errs = append(errs, fmt.Errorf("binary caches: %s:%s: %q: %w", path, e.Pos, e.Name, err))
		default:
			if c.PullOnly() {
				b.Warnings = append(b.Warnings, fmt.Sprintf("%s:%s: %q: neither a signing key nor a token; nothing is pushed to it", path, e.Pos, e.Name))
			}
			for _, k := range e.Value.Entries {
				if f, ok := fields[k.Name]; !ok || f.kind != "" && f.kind != c.Kind {
					b.Warnings = append(b.Warnings, fmt.Sprintf("%s:%s: %q: a %s has no key %q; it is ignored", path, k.Pos, e.Name, c.Kind, k.Name))
				}
			}
			b.Caches = append(b.Caches, c)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	tokens := map[string]Sensitive{}
	for _, l := range b.CachixLogins() {
		if t, ok := tokens[l.Host]; ok && !t.Equal(l.Password) {
			b.Warnings = append(b.Warnings, fmt.Sprintf("%s: caches at %s have different tokens; netrc has room for one, so Nix reads them all with the first", path, l.Host))
		}
		tokens[l.Host] = l.Password
	}
	if len(b.Caches) == 0 {
		b.Warnings = append(b.Warnings, path+": no binary cache; one is needed as soon as there is a second agent")
	}
	slices.SortFunc(b.Caches, func(x, y BinaryCache) int { return strings.Compare(x.Name, y.Name) })
	return b, nil
}

// fields of an entry: which kind has them, if not both, and what is expected there.
var fields = map[string]struct {
	kind formats.Kind
	what string
}{
	"kind":             {what: "a text"},
	"apiVersion":       {what: "nothing"},
	"storeURI":         {formats.KindNixCache, `the URI of a Nix store as a text, such as "s3://bucket" or "https://cache.example"`},
	"authToken":        {formats.KindCachixCache, "a text, the token of the cache"},
	"apiBaseUrl":       {formats.KindCachixCache, `a text, such as "https://cache.example"`},
	"publicKeys":       {what: `a list of texts, such as ["cache.example-1:" and 44 characters of base 64]`},
	"signingKeys":      {what: "a list of texts, which may be empty"},
	"compression":      {what: `a text, such as "zstd" or "xz"`},
	"compressionLevel": {what: "a whole number"},
	"concurrency":      {what: "a whole number"},
}

// explain adds to an error of the decoder what is expected. It has no values of the file in it.
func explain(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		err = inner // without the name of the Go type
	}
	for name, f := range fields {
		if strings.Contains(err.Error(), `"`+name+`"`) || regexp.MustCompile(`^\.`+name+`\b`).MatchString(err.Error()) {
			return fmt.Errorf("%w; expected is %s", err, f.what)
		}
	}
	return err
}

var errUnknownKind = errors.New("unknown kind")

func parseCache(name string, n *tree.Node) (BinaryCache, error) {
	c := BinaryCache{Name: name}
	if n.Kind != tree.Table {
		return c, errors.New("expected an object")
	}
	kind := n.Get("kind")
	if kind == nil || kind.Kind != tree.String {
		return c, errors.New(`expected a text "kind", such as "CachixCache" or "NixCache"`)
	}
	c.Kind = formats.Kind(kind.Text)
	if v := n.Get("apiVersion"); v != nil && v.Kind != tree.Null && (c.Kind == formats.KindNixCache || c.Kind == formats.KindCachixCache) {
		return c, errors.New("apiVersion is given, but no versions are defined; remove it")
	}
	data := n.AppendJSON(nil)
	var keys []string
	switch c.Kind {
	case formats.KindNixCache:
		var f formats.NixCache
		if err := formats.Unmarshal(data, &f); err != nil {
			return c, explain(err)
		}
		c.StoreURI, c.PublicKeys, keys = f.StoreURI, f.PublicKeys, f.SigningKeys
		if err := c.setUpload(f.Upload); err != nil {
			return c, err
		}
	case formats.KindCachixCache:
		var f formats.CachixCache
		if err := formats.Unmarshal(data, &f); err != nil {
			return c, explain(err)
		}
		c.PublicKeys, keys = f.PublicKeys, f.SigningKeys
		if f.AuthToken != nil {
			c.AuthToken = NewSensitive(*f.AuthToken)
		}
		if f.APIBaseURL != nil {
			c.APIBaseURL = *f.APIBaseURL
			if u, err := url.Parse(c.APIBaseURL); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
				return c, errors.New(`"apiBaseUrl": expected a URL that begins with https:// or http://`)
			}
		}
		if err := c.setUpload(f.Upload); err != nil {
			return c, err
		}
	default:
		return c, fmt.Errorf("%w %q", errUnknownKind, kind.Text)
	}
	for _, k := range keys {
		c.SigningKeys = append(c.SigningKeys, NewSensitive(k))
	}
	return c, nil
}

// Limits of the optional keys. That a compression can be done is known where it is done.
const (
	maxCompressionLevel = 22
	maxConcurrency      = 256
)

func (c *BinaryCache) setUpload(u formats.Upload) error {
	if u.Compression != nil {
		if *u.Compression == "" || strings.ContainsFunc(*u.Compression, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
			return fmt.Errorf(`"compression": expected the name of one, such as "zstd" or "xz", not %q`, *u.Compression)
		}
		c.Compression = *u.Compression
	}
	if n := u.CompressionLevel; n != nil {
		if *n < 1 || *n > maxCompressionLevel {
			return fmt.Errorf(`"compressionLevel": expected a number from 1 to %d, not %d`, maxCompressionLevel, *n)
		}
		c.CompressionLevel = int(*n)
	}
	if n := u.Concurrency; n != nil {
		if *n < 1 || *n > maxConcurrency {
			return fmt.Errorf(`"concurrency": expected a number of uploads from 1 to %d, not %d`, maxConcurrency, *n)
		}
		c.Concurrency = int(*n)
	}
	return nil
}
