package cachecheck

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hercules/internal/formats"
	"hercules/internal/logging"
	"hercules/internal/nix/daemon"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
	"hercules/internal/nix/substituter"
	"hercules/internal/push"
	"hercules/internal/push/cachix"
	"hercules/internal/push/fault"
	"hercules/internal/secrets"
)

// policy of repeating: somebody is waiting.
var policy = fault.Policy{First: 500 * time.Millisecond, Most: 2 * time.Second, Total: 5 * time.Second, Patience: 30 * time.Second}

const absent = storepath.StoreDir + "/00000000000000000000000000000000-absent"

// checkCache goes through everything for one cache, as far as one thing allows the next.
func (c *checker) checkCache(ctx context.Context, bc *secrets.BinaryCache) {
	c.checkKeys(bc)
	// A new cache is not there before something is pushed to it.
	writing := !bc.PullOnly() && c.Upload
	unreadable := c.checkRead(ctx, bc, writing)
	if bc.Kind == formats.KindCachixCache && !bc.PullOnly() {
		c.checkService(ctx, bc)
	}
	switch {
	case bc.PullOnly():
		c.say(bc.Name, "write", Skip, "nothing is pushed: there is neither a token nor a signing key")
	case !c.Upload:
		c.say(bc.Name, "write", Skip, "not tried")
	default:
		c.checkWrite(ctx, bc, unreadable)
		return
	}
	if unreadable == nil {
		c.compareSettings(bc)
	}
}

// open opens a cache to ask it for paths.
func (c *checker) open(ctx context.Context, bc *secrets.BinaryCache) (substituter.Store, error) {
	return substituter.Open(ctx, bc.Substituter(), substituter.Options{
		Client: c.client, Netrc: c.netrc, Nix: c.program("nix-daemon"), Env: c.privateEnv("dummy://"), Settings: c.settings,
	})
}

// checkRead gives the error, and leaves it to the caller to say it if it may be over soon.
func (c *checker) checkRead(ctx context.Context, bc *secrets.BinaryCache, mayChange bool) error {
	what := "it answers"
	store, err := c.open(ctx, bc)
	if err != nil {
		c.say(bc.Name, "read", Fail, "%s", told(err))
		return err
	}
	defer func() { _ = store.Close() }()
	if b, ok := store.(*substituter.BinaryCache); ok {
		var info substituter.Info
		if info, err = b.Info(ctx); err == nil {
			what = fmt.Sprintf("it answers as a binary cache with priority %d", info.Priority)
		}
	} else {
		_, err = store.Query(ctx, []string{absent})
	}
	switch {
	case err == nil:
		c.say(bc.Name, "read", OK, "%s", what)
	case !mayChange:
		c.unreadable(bc, err)
	}
	return err
}

func (c *checker) unreadable(bc *secrets.BinaryCache, err error) {
	c.say(bc.Name, "read", Fail, "%s%s", told(err), c.refusal(bc, err))
}

// refusal says what may help when a cache wants to know who reads.
func (c *checker) refusal(bc *secrets.BinaryCache, err error) string {
	if !strings.Contains(err.Error(), "answered 401") && !strings.Contains(err.Error(), "answered 403") {
		return ""
	}
	if bc.Kind == formats.KindCachixCache {
		return ". The authToken is missing or not good for this cache"
	}
	return fmt.Sprintf(". Put the password into storeURI, or a line into the netrc file that Nix reads (%s)", c.nix.NetrcFile())
}

// checkService compares what a Cachix service says with the file.
func (c *checker) checkService(ctx context.Context, bc *secrets.BinaryCache) {
	client, err := cachix.New(cachix.Options{BaseURL: bc.APIBaseURL, Name: bc.Name, Token: bc.AuthToken.Reveal(), Client: c.client, Policy: policy})
	if err != nil {
		c.say(bc.Name, "service", Fail, "%s", told(err))
		return
	}
	info, err := client.Info(ctx)
	if err != nil {
		c.say(bc.Name, "service", Fail, "%s", told(err))
		return
	}
	var unknown []string
	for _, k := range bc.PublicKeys {
		if !slices.Contains(info.PublicSigningKeys, k) {
			unknown = append(unknown, k)
		}
	}
	missing := slices.DeleteFunc(slices.Clone(info.PublicSigningKeys), func(k string) bool { return slices.Contains(bc.PublicKeys, k) })
	access := "private"
	if info.IsPublic {
		access = "public"
	}
	switch {
	case info.Permission == "Read":
		c.say(bc.Name, "service", Fail, "the token may only read the cache, and the agent is to push to it")
	case len(unknown) > 0 && len(missing) == len(info.PublicSigningKeys):
		c.say(bc.Name, "service", Fail, "the service signs with %s, and publicKeys has none of these", strings.Join(missing, " and "))
	case len(unknown) > 0:
		c.say(bc.Name, "service", Warn, "the service does not know the public key %s", strings.Join(unknown, " and "))
	case len(missing) > 0 && len(bc.SigningKeys) == 0:
		c.say(bc.Name, "service", Warn, "the service also has the public key %s, which publicKeys lacks", strings.Join(missing, " and "))
	default:
		c.say(bc.Name, "service", OK, "a %s cache, the token's permission is %s", access, or(info.Permission, "unknown"))
	}
}

// checkWrite uploads a path that nobody has, and looks what comes back.
func (c *checker) checkWrite(ctx context.Context, bc *secrets.BinaryCache, unreadable error) {
	origin, err := c.newStore("from")
	if err != nil {
		c.say(bc.Name, "write", Fail, "a store to upload from cannot be made: %s", told(err))
		return
	}
	// The daemon is asked for one of the paths before it is there: it must not remember that it was not.
	asked, fresh := newProbe(), newProbe()
	for _, p := range []*probe{asked, fresh} {
		if err := origin.add(ctx, p); err != nil {
			c.say(bc.Name, "write", Fail, "a store to upload from cannot be made: %s", told(err))
			return
		}
	}
	negative := c.endpoint != nil && c.ask(ctx, bc, asked) == nil
	begin := time.Now()
	if err := c.upload(ctx, bc, origin.endpoint, []string{asked.info.Path, fresh.info.Path}); err != nil {
		if unreadable != nil {
			c.unreadable(bc, unreadable)
		}
		c.say(bc.Name, "write", Fail, "%s", told(err))
		if unreadable == nil {
			c.compareSettings(bc)
		}
		return
	}
	c.say(bc.Name, "write", OK, "two store paths of %d bytes uploaded in %v", fresh.info.NarSize, time.Since(begin).Round(10*time.Millisecond))
	if unreadable != nil && c.checkRead(ctx, bc, false) != nil {
		return
	}
	if !c.readBack(ctx, bc, fresh) {
		return
	}
	c.substitute(ctx, bc, asked, fresh, negative)
}

func (c *checker) upload(ctx context.Context, bc *secrets.BinaryCache, from daemon.Endpoint, paths []string) error {
	p, err := push.Open([]secrets.BinaryCache{*bc}, push.Deps{
		Endpoint: from, Settings: c.settings, NixDaemon: c.program("nix-daemon"), Env: c.Env,
		Client: c.client, Credentials: c.login, TempDir: c.dir, Retry: policy,
	})
	if err != nil {
		return err
	}
	defer p.Close()
	err = p.Push(ctx, paths, push.Options{})
	if e, ok := errors.AsType[*push.Error](err); ok {
		return e.Err // Which cache and path is known here.
	}
	return err
}

// readBack looks at what the cache made of the path.
func (c *checker) readBack(ctx context.Context, bc *secrets.BinaryCache, p *probe) bool {
	const check = "read-back"
	store, err := c.open(ctx, bc) // anew: the other one remembers
	if err != nil {
		c.say(bc.Name, check, Fail, "%s", told(err))
		return false
	}
	defer func() { _ = store.Close() }()
	found, err := store.Query(ctx, []string{p.info.Path})
	switch info := found[p.info.Path]; {
	case err != nil:
		c.say(bc.Name, check, Fail, "%s", told(err))
		return false
	case info == nil:
		c.say(bc.Name, check, Fail, "the upload was accepted, but the cache does not have the path; does it write and read at the same place?")
		return false
	case string(info.NarHash) != string(p.info.NarHash) || info.NarSize != p.info.NarSize || len(info.References) > 0:
		c.say(bc.Name, check, Fail, "the cache says something else than was uploaded: hash sha256-%s of %d bytes, not sha256-%s of %d",
			base64.StdEncoding.EncodeToString(info.NarHash), info.NarSize, base64.StdEncoding.EncodeToString(p.info.NarHash), p.info.NarSize)
		return false
	default:
		if err := c.download(ctx, bc, p); err != nil {
			c.say(bc.Name, check, Fail, "Nix does not get back what was uploaded: %s", told(err))
			return false
		}
		c.say(bc.Name, check, OK, "Nix gets back what was uploaded")
		return c.checkSignature(bc, info)
	}
}

// download gets the path with Nix into a store that is empty. Signatures are another matter.
func (c *checker) download(ctx context.Context, bc *secrets.BinaryCache, p *probe) error {
	s, err := c.newStore("to")
	if err != nil {
		return err
	}
	settings := map[string]string{"substituters": bc.Substituter()}
	if c.netrc != "" {
		settings["netrc-file"] = c.netrc
	}
	return fetch(ctx, s.endpoint, settings, p)
}

func (c *checker) checkSignature(bc *secrets.BinaryCache, info *daemon.PathInfo) bool {
	good, err := narinfo.Verify(info, bc.PublicKeys)
	if err != nil {
		return false // said by checkKeys
	}
	if len(good) > 0 {
		c.say(bc.Name, "signature", OK, "what it gives is signed with %s", strings.Join(good, ", "))
		return true
	}
	var names []string
	for _, sig := range info.Signatures {
		name, _, _ := strings.Cut(sig, ":")
		names = append(names, name)
	}
	switch {
	case len(names) == 0:
		c.say(bc.Name, "signature", Fail, "what it gives is not signed; add a signing key, or let the server sign")
	default:
		c.say(bc.Name, "signature", Fail, "what it gives is signed with %s, which is none of publicKeys", strings.Join(names, ", "))
	}
	return false
}

// told is an error for people who look at a terminal, without credentials.
func told(err error) string { return logging.Redact(strings.TrimSpace(plain(err.Error()))) }

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
