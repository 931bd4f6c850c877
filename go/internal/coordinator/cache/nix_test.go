package cache_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"hercules/internal/coordinator/cache"
	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
	"hercules/internal/testnix"
)

// chain has a reference, one to itself, an executable, a link, and something that does not compress.
const chain = `let lib = sh "lib" {} "mkdir $out; dd if=/dev/urandom of=$out/data bs=64k count=6; echo $out > $out/self";
in sh "app" { inherit lib; } "mkdir -p $out/bin; printf '#!/bin/sh\necho hi' > $out/bin/app; chmod +x $out/bin/app; ln -s $lib/data $out/link"`

func netrc(t *testing.T, s *testnix.Store, token string) {
	t.Helper()
	file := s.File("netrc", "machine 127.0.0.1 login x password "+token+"\n")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	s.WriteConfig("netrc-file = "+file, "download-attempts = 1", "connect-timeout = 10")
}

func closure(s *testnix.Store, path string) []string {
	return strings.Fields(s.Run("nix-store", "-qR", path))
}

// TestNix is a push from one machine and substitution on another one, with every Nix.
func TestNix(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		srv := newServer(t, func(o *cache.Options) { o.Public = false })
		url := srv.url
		from := testnix.New(t, testnix.WithNix(n))
		path := from.Build(chain)
		paths := closure(from, path)
		if len(paths) != 2 {
			t.Fatalf("closure %v", paths)
		}

		// Without a token, and with one that is for reading.
		if _, err := from.TryRun("nix", "copy", "--option", "download-attempts", "1", "--to", url, path); err == nil {
			t.Error("pushed without a token")
		}
		netrc(t, from, readToken)
		if out, err := from.TryRun("nix", "copy", "--to", url, path); err == nil {
			t.Error("pushed with a read token", out)
		}
		if got := srv.c.Stats().Paths; got != 0 {
			t.Fatalf("%d paths are visible", got)
		}
		netrc(t, from, writeToken)
		from.Run("nix", "copy", "--to", url+"?write-nar-listing=true", path)
		from.Run("nix", "copy", "--to", url, path) // nothing to do
		sound(t, srv.c)
		if got := srv.c.Stats(); got.Paths != 2 || got.PendingUploads != 0 {
			t.Errorf("stats %+v", got)
		}
		srv.want(200, "GET", "/"+storepath.HashPart(path)+".ls", nil)

		if got := from.Run("nix", "path-info", "--store", url, "-r", path); len(strings.Fields(got)) != 2 {
			t.Errorf("path-info: %q", got)
		}
		var info any
		if err := json.Unmarshal([]byte(from.Run("nix", "path-info", "--store", url, "--json", path)), &info); err != nil {
			t.Error(err)
		}

		// The other machine checks signatures.
		to := testnix.New(t, testnix.WithNix(n), testnix.WithConfig("substituters = "+url, "download-attempts = 1",
			"trusted-public-keys = "+srv.c.PublicKey()))
		if _, err := to.TryRun("nix-store", "--realise", path); err == nil {
			t.Fatal("substituted from a private cache without a token")
		}
		netrc(t, to, readToken)
		to.Restart()
		// Nix remembers for an hour what a cache did not have.
		to.Run("nix-store", "--realise", path, "--option", "narinfo-cache-negative-ttl", "0")
		if got := to.Run("nix-store", "-q", "--hash", path); got != from.Run("nix-store", "-q", "--hash", path) {
			t.Errorf("hash %s", got)
		}
		to.Run("nix-store", "--verify-path", path)

		distrusting := testnix.New(t, testnix.WithNix(n), testnix.WithConfig("substituters = "+url, "download-attempts = 1",
			"trusted-public-keys = other-1:"+strings.Split(srv.c.PublicKey(), ":")[1]))
		netrc(t, distrusting, readToken)
		distrusting.Restart()
		if _, err := distrusting.TryRun("nix-store", "--realise", path); err == nil {
			t.Error("substituted without a trusted key")
		}
		if _, err := distrusting.TryRun("nix", "copy", "--from", url, path); err == nil {
			t.Error("copied without a trusted key")
		}
		distrusting.Run("nix", "copy", "--from", url, "--option", "trusted-public-keys", srv.c.PublicKey(), "--no-check-sigs", path)
		if got := closure(distrusting, path); len(got) != 2 {
			t.Errorf("copied %v", got)
		}
	})
}

// TestNixCompressions pushes with each compression that is verified here, and pulls again.
func TestNixCompressions(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		from := testnix.New(t, testnix.WithNix(n))
		netrc(t, from, writeToken)
		path := from.Build(chain)
		to := testnix.New(t, testnix.WithNix(n))
		for _, compression := range []string{"xz", "zstd", "none", "bzip2", "gzip"} {
			srv := newServer(t)
			from.Run("nix", "copy", "--to", srv.url+"?compression="+compression, path)
			sound(t, srv.c)
			r := srv.want(200, "GET", "/"+storepath.HashPart(path)+".narinfo", nil)
			info, err := narinfo.Parse(r.body)
			if err != nil || info.Compression != compression {
				t.Errorf("%s: %v\n%s", compression, err, r.body)
			}
			to.Run("nix", "copy", "--from", srv.url, "--option", "trusted-public-keys", srv.c.PublicKey(), path)
			paths := closure(to, path)
			to.Run("nix-store", append([]string{"--verify-path"}, paths...)...)
			to.Run("nix-store", append([]string{"--delete"}, paths...)...)
		}
		srv := newServer(t)
		if _, err := from.TryRun("nix", "copy", "--to", srv.url+"?compression=br", path); err == nil {
			t.Error("br cannot be verified here, but was taken")
		}
	})
}

// TestNixLog pushes a build log and reads it.
func TestNixLog(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		if !n.AtLeast(2, 7) {
			t.Skip("SKIP: this Nix has no nix store copy-log")
		}
		srv := newServer(t)
		from := testnix.New(t, testnix.WithNix(n))
		netrc(t, from, writeToken)
		path := from.Build(`sh "logged" {} "echo a line of the log; echo x > $out"`)
		drv := from.Run("nix-store", "-qd", path)
		installable := drv
		if n.AtLeast(2, 15) {
			installable += "^*"
		}
		from.Run("nix", "store", "copy-log", "--to", srv.url, installable)
		if got := string(srv.want(200, "GET", "/log/"+storepath.Base(drv), nil).body); !strings.Contains(got, "a line of the log") {
			t.Errorf("log %q", got)
		}
		if err := os.RemoveAll(from.Root() + "/nix/var/log"); err != nil {
			t.Fatal(err)
		}
		if got := from.Run("nix", "log", "--option", "substituters", srv.url, installable); !strings.Contains(got, "a line of the log") {
			t.Errorf("nix log %q", got)
		}
	})
}

// TestNixCachix pulls with Nix what the Cachix protocol pushed.
func TestNixCachix(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	o := makeObject(t, "made-up", randomBytes(6<<20, 1))
	srv.pushCachix(o)
	to := testnix.New(t, testnix.WithConfig("substituters = "+srv.url, "trusted-public-keys = "+srv.c.PublicKey()))
	to.Run("nix-store", "--realise", o.info.StorePath)
	st, err := os.Stat(to.Real(o.info.StorePath))
	if err != nil || st.Size() != 6<<20 {
		t.Errorf("%v %v", st, err)
	}
}
