package push_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hercules/internal/push"
	"hercules/internal/testnix"
)

func TestNixSubstitutesWhatWasPushed(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(n))
		path := s.Build(closure)
		for _, compression := range []string{"", "xz", "none", "gzip", "zstd&compression-level=12", "xz&parallel-compression=true", "bzip2"} {
			if n != testnix.Versions(t)[0] && len(compression) > 2 {
				continue // what differs between versions is what they read
			}
			for _, kind := range []string{"file", "http"} {
				t.Run(kind+"-"+compression, func(t *testing.T) {
					secret, public := keypair(t, "cache.example-1")
					uri := "file://" + t.TempDir()
					if kind == "http" {
						if compression == "bzip2" {
							t.Skip("SKIP: Nix itself writes this; once is enough")
						}
						uri = newWebCache(t).URL
					}
					p := open(t, s, nixCache("main", uri+"?compression="+compression, secret))
					var done push.Done
					must(t, p.Push(t.Context(), []string{path}, push.Options{Done: func(d push.Done) error { done = d; return nil }}))
					if done.Paths != 15 || done.Uploaded != 15 {
						t.Errorf("done: %+v", done)
					}
					to := substitute(t, n, uri, public, path)
					if got, want := len(closureOf(t, to, path)), 15; got != want {
						t.Errorf("%d paths substituted, not %d", got, want)
					}
				})
			}
		}
	})
}

func TestLocalStoreGetsClosure(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s, to := testnix.New(t, testnix.WithNix(n)), testnix.New(t, testnix.WithNix(n))
		path := s.Build(closure)
		secret, _ := keypair(t, "k-1")
		p := open(t, s, nixCache("main", to.DirectRemote(), secret))
		must(t, p.Push(t.Context(), []string{path}, push.Options{}))
		to.Run("nix-store", "--verify", "--check-contents")
		if got := len(closureOf(t, to, path)); got != 15 {
			t.Errorf("%d paths there", got)
		}
		if sigs := s.Run("nix", "path-info", "--sigs", path); !strings.Contains(sigs, "k-1:") {
			t.Errorf("the local store did not get the signature: %s", sigs)
		}
		must(t, p.Push(t.Context(), []string{path}, push.Options{Done: func(d push.Done) error {
			if d.Uploaded != 0 {
				t.Errorf("pushed again: %+v", d)
			}
			return nil
		}}))
	})
}

func TestDerivations(t *testing.T) {
	t.Parallel()
	s := testnix.New(t)
	secret, public := keypair(t, "k-1")
	_ = os.WriteFile(filepath.Join(s.Dir(), "src"), []byte("source"), 0o644)
	drv := s.Instantiate(`sh "x" { src = ` + s.File("src.txt", "source") + `; dep = sh "dep" { name2 = "${builtins.toFile "t" "text"}"; } "echo > $out"; } "cat $src > $out"`)
	c := newWebCache(t)
	p := open(t, s, nixCache("main", c.URL, secret))
	must(t, p.PushClosure(t.Context(), []string{drv}))
	to := substitute(t, s.Nix(), c.URL, public, strings.TrimSuffix(drv, "!out"))
	if got, want := len(closureOf(t, to, drv)), len(closureOf(t, s, drv)); got != want || want != 4 {
		t.Errorf("%d paths substituted of %d", got, want)
	}
}
