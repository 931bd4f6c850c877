package source_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hercules/internal/evaluate/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type entry struct {
	h    tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}, body}
}

func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}

func link(kind byte, name, target string) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777}, ""}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, e := range entries {
		if err := w.WriteHeader(&e.h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tree is a directory as text: one line a file.
func tree(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			b.WriteString(name + "/")
		case d.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			b.WriteString(name + " -> " + target)
		default:
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b.WriteString(name)
			if info.Mode()&0o100 != 0 {
				b.WriteString("*")
			}
			if info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
				b.WriteString(" SPECIAL")
			}
			if len(text) < 100 {
				b.WriteString(" " + string(text))
			}
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestUnpackKeepsWhatMatters(t *testing.T) {
	t.Parallel()
	when := time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)
	script := file("top/deep/run", "#!/bin/sh\n")
	script.h.Mode, script.h.ModTime = 0o4755, when
	secret := file("top/secret", "mode 000")
	secret.h.Mode = 0
	folder := dir("top/")
	folder.h.ModTime = when
	readOnly := dir("top/ro")
	readOnly.h.Mode = 0o555
	weird := "top/a b\"c\\d\né\xff"
	data := archive(t,
		entry{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "3f9b0c4d"}}, ""},
		folder,
		script,
		secret,
		readOnly,
		file("top/ro/inside", "x"),
		file("top/without/parents/given", "y"),
		link(tar.TypeSymlink, "top/sym", "deep/run"),
		link(tar.TypeLink, "top/hard", "top/deep/run"),
		file("./top/./dot", "z"),
		file(weird, "odd"),
		file("top/twice", "first"),
		file("top/twice", "second"),
		link(tar.TypeSymlink, "top/replaced", "twice"),
		file("top/replaced", "not through the link"),
		file(strings.Repeat("top/"+strings.Repeat("n", 90)+"/", 1)+strings.Repeat("long", 50), "pax"),
	)
	to := t.TempDir()
	notes, err := source.Unpack(t.Context(), bytes.NewReader(data), to, source.Limits{})
	if err != nil || len(notes) > 0 {
		t.Fatal(err, notes)
	}
	want := "top/\n" +
		weird + " odd\n" +
		"top/deep/\n" +
		"top/deep/run* #!/bin/sh\n\n" +
		"top/dot z\n" +
		"top/hard* #!/bin/sh\n\n" +
		"top/" + strings.Repeat("n", 90) + "/\n" +
		"top/" + strings.Repeat("n", 90) + "/" + strings.Repeat("long", 50) + " pax\n" +
		"top/replaced not through the link\n" +
		"top/ro/\n" +
		"top/ro/inside x\n" +
		"top/secret mode 000\n" +
		"top/sym -> deep/run\n" +
		"top/twice second\n" +
		"top/without/\n" +
		"top/without/parents/\n" +
		"top/without/parents/given y\n"
	if d := cmp.Diff(want, tree(t, to)); d != "" {
		t.Error(d)
	}
	for _, name := range []string{"top", "top/deep/run"} {
		info, err := os.Stat(filepath.Join(to, name))
		if err != nil {
			t.Fatal(err)
		}
		if !info.ModTime().Equal(when) {
			t.Errorf("%s has time %v, want %v", name, info.ModTime().UTC(), when)
		}
		if info.Mode()&0o200 == 0 {
			t.Errorf("%s is not writable", name)
		}
	}
}

func TestUnpackRefusesHostileArchives(t *testing.T) {
	t.Parallel()
	good := archive(t, file("a/default.nix", strings.Repeat("null # some text that does not vanish when it is compressed\n", 20)), dir("a/b"))
	huge := file("a/huge", "")
	huge.h.Size = 1 << 55
	var hugeHeader bytes.Buffer
	z := gzip.NewWriter(&hugeHeader)
	if err := tar.NewWriter(z).WriteHeader(&huge.h); err != nil {
		t.Fatal(err)
	}
	z.Close()
	damaged := bytes.Clone(good)
	damaged[len(damaged)-6] ^= 0xff // in the check sum
	var many []entry
	for range 20 {
		many = append(many, file("a/x", ""))
	}
	tests := []struct {
		name   string
		data   []byte
		limits source.Limits
		want   string
	}{
		{"dot dot", archive(t, file("a/../../evil", "x")), source.Limits{}, `entry "a/../../evil": its name leads out with ".."`},
		{"dot dot that stays inside", archive(t, file("a/../b", "x")), source.Limits{}, `leads out with ".."`},
		{"absolute", archive(t, file("/etc/evil", "x")), source.Limits{}, `entry "/etc/evil": its name is absolute`},
		{"through a link", archive(t, link(tar.TypeSymlink, "a", "/tmp"), file("a/evil", "x")), source.Limits{}, `entry "a/evil": a link on the way to it leads out of the archive`},
		{"through a relative link", archive(t, dir("d"), link(tar.TypeSymlink, "d/a", "../.."), file("d/a/evil", "x")), source.Limits{}, `a link on the way to it leads out`},
		{"directory through a link", archive(t, link(tar.TypeSymlink, "a", "/tmp"), dir("a/evil")), source.Limits{}, `a link on the way to it leads out`},
		{"link through a link", archive(t, link(tar.TypeSymlink, "a", "/tmp"), link(tar.TypeSymlink, "a/evil", "x")), source.Limits{}, `a link on the way to it leads out`},
		{"through links that each look harmless", archive(t, dir("d/e"), link(tar.TypeSymlink, "d/up", ".."), link(tar.TypeSymlink, "d/e/upup", "../up/.."), file("d/e/upup/evil", "x")), source.Limits{}, `a link on the way to it leads out`},
		{"hard link out", archive(t, link(tar.TypeLink, "a", "../../etc/passwd")), source.Limits{}, `it is a hard link that leads out, to "../../etc/passwd"`},
		{"hard link absolute", archive(t, link(tar.TypeLink, "a", "/etc/passwd")), source.Limits{}, `it is a hard link that leads out, to "/etc/passwd"`},
		{"hard link through a link", archive(t, link(tar.TypeSymlink, "etc", "/etc"), link(tar.TypeLink, "a", "etc/passwd")), source.Limits{}, `leads out of the archive`},
		{"hard link to nothing", archive(t, link(tar.TypeLink, "a", "b")), source.Limits{}, `a hard link to "b", which is not in the archive before it`},
		{"device", archive(t, entry{tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}, ""}), source.Limits{}, `entry "null": it is a device or a pipe`},
		{"pipe", archive(t, entry{tar.Header{Typeflag: tar.TypeFifo, Name: "p"}, ""}), source.Limits{}, `it is a device or a pipe`},
		{"root is a file", archive(t, file(".", "x")), source.Limits{}, `not a directory`},
		{"too large for any disk", hugeHeader.Bytes(), source.Limits{}, `does not fit on the disk`},
		{"larger than allowed", archive(t, file("a", strings.Repeat("x", 5000))), source.Limits{Bytes: 4000}, `larger than is allowed`},
		{"too many", archive(t, many...), source.Limits{Entries: 19}, `too many entries`},
		{"empty", nil, source.Limits{}, `it is cut off`},
		{"one byte", good[:1], source.Limits{}, `it is cut off`},
		{"truncated in the middle", good[:len(good)/2], source.Limits{}, `it is cut off`},
		{"truncated before the check sum", good[:len(good)-8], source.Limits{}, `it is cut off`},
		{"damaged", damaged, source.Limits{}, `it is damaged`},
		{"web page", []byte("<html><body>Please sign in</body></html>"), source.Limits{}, `it is not a gzipped tar archive`},
		{"gzip of something else", gzipped(t, strings.Repeat("this is no tar archive at all\n", 100)), source.Limits{}, `it is not a gzipped tar archive`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			outer := t.TempDir()
			to := filepath.Join(outer, "to")
			if err := os.Mkdir(to, 0o700); err != nil {
				t.Fatal(err)
			}
			_, err := source.Unpack(t.Context(), bytes.NewReader(test.data), to, test.limits)
			var archiveErr *source.ArchiveError
			if !errors.As(err, &archiveErr) {
				t.Fatalf("got %v, want an ArchiveError", err)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want it to contain %q", err, test.want)
			}
			if strings.Contains(err.Error(), outer) {
				t.Errorf("the error names a directory of the agent: %v", err)
			}
			if entries, _ := os.ReadDir(outer); len(entries) != 1 {
				t.Errorf("something was written outside: %v", entries)
			}
			if _, err := os.Lstat("/tmp/evil"); err == nil {
				t.Error("/tmp/evil exists")
			}
		})
	}
}

func gzipped(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.WriteString(z, text); err != nil {
		t.Fatal(err)
	}
	z.Close()
	return b.Bytes()
}

// A link that leads out is harmless while nobody follows it, and repositories have such links.
func TestUnpackNotesLinksThatLeadOut(t *testing.T) {
	t.Parallel()
	to := t.TempDir()
	data := archive(t, dir("r"), link(tar.TypeSymlink, "r/result", "/nix/store/abc"), link(tar.TypeSymlink, "r/up", "../../x"),
		link(tar.TypeSymlink, "r/fine", "../r/up"), link(tar.TypeSymlink, "r/3", "/3"), link(tar.TypeSymlink, "r/4", "/4"), file("r/f", "x"))
	notes, err := source.Unpack(t.Context(), bytes.NewReader(data), to, source.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`the link "r/result" leads out of the source, to "/nix/store/abc"`,
		`the link "r/up" leads out of the source, to "../../x"`,
		`the link "r/3" leads out of the source, to "/3"`,
		`and 1 more such links`,
	}
	if d := cmp.Diff(want, notes); d != "" {
		t.Error(d)
	}
}

// Whatever the bytes: nothing outside of the directory, no panic, and an end.
func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, dir("a"), file("a/b", "c"), link(tar.TypeSymlink, "l", "a"), file("l/x", "y"), link(tar.TypeLink, "h", "a/b")))
	f.Add(archive(f, link(tar.TypeSymlink, "a", ".."), file("a/evil", "x")))
	f.Fuzz(func(t *testing.T, data []byte) {
		outer := t.TempDir()
		to := filepath.Join(outer, "to")
		if err := os.Mkdir(to, 0o700); err != nil {
			t.Fatal(err)
		}
		limits := source.Limits{Bytes: 1 << 20, Entries: 100}
		_, _ = source.Unpack(t.Context(), bytes.NewReader(data), to, limits)
		// The fuzzer does not find its way through compression.
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(data)
		z.Close()
		_, _ = source.Unpack(t.Context(), &b, to, limits)
		if entries, _ := os.ReadDir(outer); len(entries) != 1 {
			t.Errorf("something was written outside: %v", entries)
		}
	})
}

func BenchmarkUnpack(b *testing.B) {
	var entries []entry
	r := rand.New(rand.NewSource(1))
	body := make([]byte, 4000)
	r.Read(body)
	for d := range 100 {
		for range 100 {
			entries = append(entries, file("top/"+strings.Repeat("d/", d%5)+string(rune('a'+d%26))+"/"+time.Duration(r.Int63()).String(), string(body)))
		}
	}
	data := archive(b, entries...)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		to := b.TempDir()
		if _, err := source.Unpack(b.Context(), bytes.NewReader(data), to, source.Limits{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(to)
		b.StartTimer()
	}
	b.ReportMetric(float64(len(entries)*b.N)/b.Elapsed().Seconds(), "files/s")
}
