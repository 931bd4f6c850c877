package daemon_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
)

const noPath = "/nix/store/ffffffffffffffffffffffffffffffff-nothing"

func TestQueries(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		c := dial(t, s.Endpoint(), daemon.Options{})
		ctx := t.Context()
		spoken, offered := c.ProtocolVersion()
		t.Logf("Nix %s: protocol 1.%d of 1.%d, trust %d", c.DaemonVersion(), spoken&0xff, offered&0xff, c.Trusted())
		if c.DaemonVersion() != n.Version {
			t.Errorf("the daemon says that it is Nix %q", c.DaemonVersion())
		}

		dep := must(c.AddTextToStore(ctx, "dep", "I am a dependency\n", nil))(t)
		text := must(c.AddTextToStore(ctx, "text", "see "+dep, []string{dep}))(t)
		if got := string(must(os.ReadFile(filepath.Join(s.Endpoint().Root, text)))(t)); got != "see "+dep {
			t.Errorf("the text is %q", got)
		}
		if !must(c.IsValidPath(ctx, text))(t) || must(c.IsValidPath(ctx, noPath))(t) {
			t.Error("IsValidPath is wrong")
		}
		if got := must(c.QueryValidPaths(ctx, []string{dep, noPath}, false))(t); !slices.Equal(got, []string{dep}) {
			t.Errorf("QueryValidPaths gives %q", got)
		}
		all := must(c.QueryAllValidPaths(ctx))(t)
		if !slices.Contains(all, dep) || !slices.Contains(all, text) || len(all) != 2 {
			t.Errorf("QueryAllValidPaths gives %q", all)
		}
		info, found, err := c.QueryPathInfo(ctx, text)
		if err != nil || !found {
			t.Fatalf("found %v, %v", found, err)
		}
		var nar bytes.Buffer
		if err := c.NarFromPath(ctx, text, &nar); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(nar.Bytes())
		want := &daemon.PathInfo{
			Path: text, NarHash: sum[:], NarSize: uint64(nar.Len()), References: []string{dep},
			RegistrationTime: info.RegistrationTime, Ultimate: info.Ultimate, ContentAddress: info.ContentAddress,
		}
		if diff := cmp.Diff(want, info); diff != "" {
			t.Error(diff)
		}
		if !strings.HasPrefix(info.ContentAddress, "text:sha256:") || info.RegistrationTime == 0 {
			t.Errorf("info is %+v", info)
		}
		if _, found, err := c.QueryPathInfo(ctx, noPath); found || err != nil {
			t.Errorf("found %v, %v", found, err)
		}
		if got := must(c.QueryReferrers(ctx, dep))(t); !slices.Equal(got, []string{text}) {
			t.Errorf("QueryReferrers gives %q", got)
		}
		if got := must(c.QueryPathFromHashPart(ctx, filepath.Base(dep)[:32]))(t); got != dep {
			t.Errorf("QueryPathFromHashPart gives %q", got)
		}
		if got := must(c.QueryPathFromHashPart(ctx, strings.Repeat("f", 32)))(t); got != "" {
			t.Errorf("QueryPathFromHashPart gives %q", got)
		}
		if err := c.AddTempRoot(ctx, dep); err != nil {
			t.Error(err)
		}
		if err := c.EnsurePath(ctx, dep); err != nil {
			t.Error(err)
		}
		if got := must(c.QuerySubstitutablePaths(ctx, []string{noPath}))(t); len(got) != 0 {
			t.Errorf("QuerySubstitutablePaths gives %q", got)
		}
		if got := must(c.QuerySubstitutablePathInfos(ctx, []string{noPath}))(t); len(got) != 0 {
			t.Errorf("QuerySubstitutablePathInfos gives %v", got)
		}
		if left := must(c.VerifyStore(ctx, true, false))(t); left {
			t.Error("VerifyStore finds errors")
		}
		link := filepath.Join(s.Dir(), "gcroot")
		if err := os.Symlink(text, link); err != nil {
			t.Fatal(err)
		}
		if err := c.AddIndirectRoot(ctx, link); err != nil {
			t.Fatal(err)
		}
		if got := must(c.FindRoots(ctx))(t); got[link] != text {
			t.Errorf("FindRoots gives %v, not %s", got, link)
		}
	})
}

func TestGarbage(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		s := newStore(t, n)
		keeper := dial(t, s.Endpoint(), daemon.Options{})
		c := dial(t, s.Endpoint(), daemon.Options{})
		ctx := t.Context()
		kept := must(keeper.AddTextToStore(ctx, "kept", "kept", nil))(t)
		if err := keeper.AddTempRoot(ctx, kept); err != nil {
			t.Fatal(err)
		}
		other := dial(t, s.Endpoint(), daemon.Options{})
		dead := must(other.AddTextToStore(ctx, "dead", "dead", nil))(t)
		specific := must(other.AddTextToStore(ctx, "specific", "specific", nil))(t)
		// What a connection adds is kept for as long as it lasts.
		_ = other.Close()
		waitFor(t, func() bool {
			paths, _, err := c.CollectGarbage(ctx, daemon.GCReturnDead, nil, 0)
			return err == nil && slices.Contains(paths, dead)
		})
		if _, _, err := c.CollectGarbage(ctx, daemon.GCDeleteSpecific, []string{specific}, 0); err != nil {
			t.Fatal(err)
		}
		if must(c.IsValidPath(ctx, specific))(t) || !must(c.IsValidPath(ctx, dead))(t) {
			t.Error("not just the specific path was deleted")
		}
		paths, freed, err := c.CollectGarbage(ctx, daemon.GCDeleteDead, nil, 0)
		if err != nil || freed == 0 {
			t.Fatalf("freed %d of %q: %v", freed, paths, err)
		}
		if got := must(c.QueryAllValidPaths(ctx))(t); !slices.Equal(got, []string{kept}) {
			t.Errorf("left are %q", got)
		}
	})
}

func TestRemoteErrorLeavesTheConnectionUsable(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, n testnix.Nix) {
		c := dial(t, newStore(t, n).Endpoint(), daemon.Options{})
		ctx := t.Context()
		err := c.EnsurePath(ctx, noPath)
		var remote *daemon.RemoteError
		if !asRemote(err, &remote) || !strings.Contains(remote.Msg, filepath.Base(noPath)) {
			t.Fatalf("the error is %v", err)
		}
		if must(c.IsValidPath(ctx, noPath))(t) {
			t.Error("it is valid")
		}
	})
}

func TestBadPathsAreRefusedBeforeTheyAreSent(t *testing.T) {
	t.Parallel()
	c := dial(t, testnix.New(t).Endpoint(), daemon.Options{})
	for _, p := range []string{
		"", "/nix/store", "/nix/store/", "/etc/passwd", noPath + "/bin", "/nix/store/../" + noPath,
		"/nix/store/ffffffffffffffffffffffffffffffff", "/nix/store/ffffffffffffffffffffffffffffffff-",
		"/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-e", noPath + "\x00", noPath + "é", noPath + strings.Repeat("x", 211),
	} {
		if _, err := c.IsValidPath(t.Context(), p); err == nil {
			t.Errorf("%q is taken", p)
		}
	}
	for _, p := range []daemon.DerivedPath{{Path: "/"}, {Path: noPath, Outputs: []string{}}, {Path: noPath, Outputs: []string{"a,b"}}} {
		if err := c.BuildPaths(t.Context(), []daemon.DerivedPath{p}, daemon.BuildNormal); err == nil {
			t.Errorf("%v is taken", p)
		}
	}
	if _, err := c.IsValidPath(context.Background(), noPath); err != nil {
		t.Error(err)
	}
}
