// Package checkout turns a directory on a developer's machine into the source of a job: it finds the git
// repository, the commit and the branch, and writes the tarball that a forge would have served.
//
// It runs the git program. It must not know what a job does with the source.
package checkout

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"hercules/internal/proc"
)

// Checkout is a directory with what git knows of it.
type Checkout struct {
	// Dir is the directory that was asked for, absolute, links resolved.
	Dir string
	// Root is the top of the git work tree that Dir is in; empty when there is none.
	Root string
	// Name is the repository's name: the last part of the remote's URL, else the directory's name.
	Name string
	// Rev is the commit that is checked out; empty outside git and before the first commit.
	Rev string
	// Ref is refs/heads/… or refs/tags/…. With a detached HEAD that no tag names it is refs/heads/HEAD.
	Ref string
	// RemoteURL of the branch's upstream or of origin; may be empty.
	RemoteURL string
	// Changed says that the work tree differs from Rev below Dir, untracked files included.
	Changed bool
	// Submodules says that the repository has submodules, which an archive of a commit leaves out.
	Submodules bool
}

// Open looks at dir. It fails when dir is not a directory or git does not answer; a directory outside git is fine.
func Open(ctx context.Context, dir string) (*Checkout, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return nil, err
	}
	info, err := os.Stat(abs)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory; name the directory of a checkout", dir)
	}
	c := &Checkout{Dir: abs, Name: filepath.Base(abs), Ref: "refs/heads/HEAD"}
	root, err := git(ctx, abs, "rev-parse", "--show-toplevel")
	if err != nil {
		if noRepository(err) {
			return c, nil
		}
		return nil, err
	}
	c.Root = root
	if rev, err := git(ctx, abs, "rev-parse", "--verify", "--quiet", "HEAD^{commit}"); err == nil {
		c.Rev = rev
	}
	if ref, err := git(ctx, abs, "symbolic-ref", "--quiet", "HEAD"); err == nil {
		c.Ref = ref
	} else if tag, err := git(ctx, abs, "describe", "--exact-match", "--tags", "HEAD"); err == nil {
		c.Ref = "refs/tags/" + tag
	}
	c.RemoteURL = remote(ctx, abs, c.Ref)
	if c.Root == c.Dir {
		if name := repositoryName(c.RemoteURL); name != "" {
			c.Name = name
		}
	}
	status, err := git(ctx, abs, "status", "--porcelain", "--untracked-files=normal", "--", ".")
	if err != nil {
		return nil, err
	}
	c.Changed = status != ""
	if _, err := os.Lstat(filepath.Join(root, ".gitmodules")); err == nil {
		c.Submodules = true
	}
	return c, nil
}

// AtRoot says whether Dir is the top of its repository.
func (c *Checkout) AtRoot() bool { return c.Root != "" && c.Root == c.Dir }

// Has says whether the source has a regular file at the slash-separated name, in the commit or, with dirty, on disk.
func (c *Checkout) Has(ctx context.Context, name string, dirty bool) bool {
	if dirty || c.Root == "" {
		info, err := os.Stat(filepath.Join(c.Dir, filepath.FromSlash(name)))
		return err == nil && info.Mode().IsRegular()
	}
	kind, err := git(ctx, c.Dir, "cat-file", "-t", "HEAD:./"+name)
	return err == nil && kind == "blob"
}

// Tarball writes a gzipped tarball with one top directory to w: the commit, or with dirty (and always outside
// git) the files on disk that git does not ignore.
func (c *Checkout) Tarball(ctx context.Context, w io.Writer, dirty bool) error {
	// The tarball only crosses the loopback interface: compressing it would cost more than it saves.
	zw, err := gzip.NewWriterLevel(w, gzip.NoCompression)
	if err != nil {
		return err
	}
	switch {
	case c.Root == "":
		err = c.tarTree(ctx, zw)
	case dirty:
		err = c.tarWorkTree(ctx, zw)
	default:
		err = c.tarCommit(ctx, zw)
	}
	if err != nil {
		return err
	}
	return zw.Close()
}

func (c *Checkout) tarCommit(ctx context.Context, w io.Writer) error {
	if c.Rev == "" {
		return fmt.Errorf("%s has no commit yet; commit something or take the files as they are with --dirty", c.Root)
	}
	cmd := command(ctx, c.Dir, "archive", "--format=tar", "--prefix=source/", c.Rev)
	cmd.Stdout = w
	return run(cmd)
}

// tarWorkTree takes what git tracks or would track. Files that are tracked but deleted are left out.
func (c *Checkout) tarWorkTree(ctx context.Context, w io.Writer) error {
	cmd := command(ctx, c.Dir, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate", "--", ".")
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := run(cmd); err != nil {
		return err
	}
	tw := newTarWriter(w)
	for name := range strings.SplitSeq(strings.TrimSuffix(out.String(), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := addFile(tw, c.Dir, name); err != nil {
			return err
		}
	}
	return tw.Close()
}

func (c *Checkout) tarTree(ctx context.Context, w io.Writer) error {
	tw := newTarWriter(w)
	err := filepath.WalkDir(c.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(c.Dir, path)
		if err != nil || rel == "." {
			return err
		}
		if entry.IsDir() {
			return nil
		}
		return addFile(tw, c.Dir, filepath.ToSlash(rel))
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func newTarWriter(w io.Writer) *tar.Writer {
	tw := tar.NewWriter(w)
	// An empty checkout is still a directory. A failure here comes back from the next write.
	_ = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "source/", Mode: 0o755})
	return tw
}

func addFile(tw *tar.Writer, dir, name string) error {
	path := filepath.Join(dir, filepath.FromSlash(name))
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // tracked, but deleted
	}
	if err != nil {
		return err
	}
	header := &tar.Header{Name: "source/" + name, Mode: 0o644, Format: tar.FormatPAX}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		header.Typeflag = tar.TypeSymlink
		if header.Linkname, err = os.Readlink(path); err != nil {
			return err
		}
		return tw.WriteHeader(header)
	case info.IsDir():
		// Git lists a submodule or a repository inside this one as a directory; neither belongs to this source.
		header.Typeflag, header.Name, header.Mode = tar.TypeDir, strings.TrimSuffix(header.Name, "/")+"/", 0o755
		return tw.WriteHeader(header)
	case !info.Mode().IsRegular():
		return nil // sockets and pipes are no source
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// The size must be that of the file as opened: it may have been replaced since it was listed.
	if info, err = f.Stat(); err != nil {
		return err
	}
	header.Typeflag, header.Size = tar.TypeReg, info.Size()
	if info.Mode()&0o111 != 0 {
		header.Mode = 0o755
	}
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	if _, err := io.CopyN(tw, f, info.Size()); err != nil {
		return fmt.Errorf("reading %s, which changed meanwhile: %w", path, err)
	}
	return nil
}

func remote(ctx context.Context, dir, ref string) string {
	name := "origin"
	if branch, ok := strings.CutPrefix(ref, "refs/heads/"); ok {
		if upstream, err := git(ctx, dir, "config", "--get", "branch."+branch+".remote"); err == nil && upstream != "." {
			name = upstream
		}
	}
	url, err := git(ctx, dir, "remote", "get-url", name)
	if err != nil {
		return ""
	}
	return url
}

func repositoryName(url string) string {
	url = strings.TrimRight(url, "/")
	url = strings.TrimSuffix(url, ".git")
	if i := strings.LastIndexAny(url, "/:"); i >= 0 {
		url = url[i+1:]
	}
	return url
}

// gitError is what git said when it failed.
type gitError struct {
	args   []string
	stderr string
	err    error
}

func (e *gitError) Error() string {
	if text := strings.TrimSpace(e.stderr); text != "" {
		return fmt.Sprintf("git %s: %s", e.args[0], text)
	}
	return fmt.Sprintf("git %s: %v", e.args[0], e.err)
}

func (e *gitError) Unwrap() error { return e.err }

func noRepository(err error) bool {
	failed, ok := errors.AsType[*gitError](err)
	return ok && strings.Contains(failed.stderr, "not a git repository")
}

func command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := proc.Command(ctx, "git", args...)
	cmd.Dir = dir
	// LC_ALL: noRepository reads the message. Optional locks: looking must not disturb the developer's own git.
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0")
	return cmd
}

func run(cmd *exec.Cmd) error {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return &gitError{args: cmd.Args[1:], stderr: stderr.String(), err: err}
	}
	return nil
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := command(ctx, dir, args...)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	err := run(cmd)
	return strings.TrimSuffix(stdout.String(), "\n"), err
}
