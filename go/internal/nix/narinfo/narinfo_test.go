package narinfo_test

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	gonix "github.com/nix-community/go-nix/pkg/narinfo"
	"github.com/nix-community/go-nix/pkg/narinfo/signature"

	"hercules/internal/nix/narinfo"
	"hercules/internal/nix/storepath"
	"hercules/internal/testnix"
)

const (
	hash    = "00bgd045z0d4icpbc2yyz4gx48ak44la"
	path    = "/nix/store/" + hash + "-net-tools-1.60"
	narHash = "0lxjvvpr59c2mdram7ympy5ay741f180kv3349hvfc3f8nrmbqf6"
	minimal = "StorePath: " + path + "\nURL: nar/x.nar.xz\nNarHash: sha256:" + narHash + "\nNarSize: 464152\n"
)

func TestParse(t *testing.T) {
	t.Parallel()
	a, b := "/nix/store/"+hash+"-a", "/nix/store/"+hash+"-b"
	text := minimal + "Compression: xz\nFileHash: sha256:1\nFileSize: 114980\nReferences: " + hash + "-b " + b + "  " + hash + "-a\n" +
		"Deriver: " + hash + "-net-tools-1.60.drv\r\nSig: k-1:AAAA\nSig: k-2:BBBB\nCA: fixed:r:sha256:x\nUnknown: y\nUnknown: z\n\n"
	n, err := narinfo.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	sum, err := hex.DecodeString(hexHash)
	if err != nil {
		t.Fatal(err)
	}
	want := &narinfo.NarInfo{
		StorePath: path, URL: "nar/x.nar.xz", Compression: "xz", FileHash: "sha256:1", FileSize: 114980,
		NarHash: sum, NarSize: 464152, References: []string{a, b}, Deriver: path + ".drv",
		Sigs: []string{"k-1:AAAA", "k-2:BBBB"}, CA: "fixed:r:sha256:x",
	}
	if diff := cmp.Diff(want, n); diff != "" {
		t.Error(diff)
	}
	again, err := narinfo.Parse(n.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(n, again); diff != "" {
		t.Errorf("what was written reads differently: %s", diff)
	}
}

const hexHash = "c6e155b3456e30b7612263ec095070811caf8abfd59faa72ab82a592efdeb253"

func TestParseTolerates(t *testing.T) {
	t.Parallel()
	for _, more := range []string{
		"", "Deriver: unknown-deriver\n", "Deriver:\n", "References:\n", "References: \n", "Sig:\n", "Sig: nonsense\n",
		"System: x86_64-linux\n", "No-Such-Key: 1\n", "FileHash: whatever\n",
	} {
		n, err := narinfo.Parse([]byte(minimal + more))
		if err != nil {
			t.Errorf("%q: %v", more, err)
			continue
		}
		if n.Deriver != "" || n.References != nil || n.Compression != "bzip2" {
			t.Errorf("%q: %+v", more, n)
		}
	}
	for _, h := range []string{"sha256:" + hexHash, "sha256-xuFVs0VuMLdhImPsCVBwgRyvir/Vn6pyq4Klku/eslM=", "sha256:xuFVs0VuMLdhImPsCVBwgRyvir/Vn6pyq4Klku/eslM="} {
		n, err := narinfo.Parse([]byte(strings.Replace(minimal, "sha256:"+narHash, h, 1)))
		if err != nil {
			t.Errorf("%s: %v", h, err)
			continue
		}
		if got := hex.EncodeToString(n.NarHash); got != hexHash {
			t.Errorf("%s reads as %s", h, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                          "without StorePath",
		"<html>\n":                  "no colon",
		minimal + "URL: again\n":    "URL twice",
		minimal + "Deriver: ../x\n": "not the base name",
		minimal + "References: a\n": "not the base name",
		minimal + "FileSize: -1\n":  "FileSize",
		strings.Replace(minimal, path, "/nix/store/../x", 1): "not a store path",
		strings.Replace(minimal, "464152", "0", 1):           "zero",
		strings.Replace(minimal, "464152", "1e3", 1):         "NarSize",
		strings.Replace(minimal, narHash, narHash[1:], 1):    "malformed hash",
		strings.Replace(minimal, "sha256:", "md5:", 1):       "not of sha256",
		strings.Replace(minimal, "nar/x.nar.xz", "", 1):      "URL: empty",
		strings.Replace(minimal, "NarSize: 464152\n", "", 1): "without NarSize",
		strings.Repeat("Unknown: x\n", narinfo.MaxSize/11+1): "more than",
	} {
		_, err := narinfo.Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80q: error %v, want %q", text, err, want)
		}
	}
}

func TestSignatures(t *testing.T) {
	t.Parallel()
	n, err := narinfo.Parse([]byte(minimal + "References: " + hash + "-b " + hash + "-a\n"))
	if err != nil {
		t.Fatal(err)
	}
	secret, public, err := signature.GenerateKeypair("good-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := signature.GenerateKeypair("other-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	info := n.PathInfo()
	sig, err := secret.Sign(nil, narinfo.Fingerprint(info))
	if err != nil {
		t.Fatal(err)
	}
	info.Signatures = []string{"nonsense", "other-1:" + strings.SplitN(sig.String(), ":", 2)[1], sig.String(), sig.String()}
	keys := []string{other.String(), public.String()}
	good, err := narinfo.Verify(info, keys)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"good-1"}, good); diff != "" {
		t.Error(diff)
	}
	info.NarSize++
	if good, err := narinfo.Verify(info, keys); err != nil || good != nil {
		t.Errorf("after a change good signatures are %q, %v", good, err)
	}
	if _, err := narinfo.Verify(info, []string{"nonsense"}); err == nil {
		t.Error("a malformed key is taken")
	}
}

func TestNarinfosOfNix(t *testing.T) {
	t.Parallel()
	testnix.ForEachVersion(t, func(t *testing.T, nix testnix.Nix) {
		s := testnix.New(t, testnix.WithNix(nix))
		secretFile, publicFile := filepath.Join(s.Dir(), "secret"), filepath.Join(s.Dir(), "public")
		s.Run("nix-store", "--generate-binary-cache-key", "test-1", secretFile, publicFile)
		public, err := os.ReadFile(publicFile)
		if err != nil {
			t.Fatal(err)
		}
		out := s.Build(`sh "x" { dep = sh "dep" { } "echo dep > $out"; } "mkdir $out; echo $dep > $out/f; echo $out > $out/g"`)
		cache := filepath.Join(s.Dir(), "cache")
		s.Copy("file://"+cache+"?secret-key="+secretFile, out)
		files, err := filepath.Glob(cache + "/*.narinfo")
		if err != nil || len(files) != 2 {
			t.Fatalf("the cache has %q, %v", files, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			n, err := narinfo.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(text), string(n.Append(nil))); diff != "" {
				t.Errorf("written differently from Nix: %s", diff)
			}
			other, err := gonix.Parse(strings.NewReader(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			if got := narinfo.Fingerprint(n.PathInfo()); got != other.Fingerprint() {
				t.Errorf("fingerprint %s, go-nix has %s", got, other.Fingerprint())
			}
			if good, err := narinfo.Verify(n.PathInfo(), []string{strings.TrimSpace(string(public))}); err != nil || len(good) != 1 {
				t.Errorf("the signature of Nix is not good: %q, %v", good, err)
			}
			if want := s.Run("nix-store", "-q", "--hash", n.StorePath); !strings.Contains(string(text), "NarHash: "+want) {
				t.Errorf("%s has the hash %s", n.StorePath, want)
			}
			if storepath.HashPart(n.StorePath)+".narinfo" != filepath.Base(file) {
				t.Errorf("%s is in %s", n.StorePath, file)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte(minimal + "References: " + hash + "-a " + hash + "-b\nDeriver: unknown-deriver\nSig: a:b\nSig: c:d\n"))
	f.Add([]byte(minimal + "Deriver: " + hash + "-x.drv\nCA: text:sha256:x\nSystem: y\nFileSize: 1\nCompression: none\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := narinfo.Parse(text)
		if err != nil {
			return
		}
		again, err := narinfo.Parse(n.Append(nil))
		if err != nil {
			t.Fatalf("what was written is refused: %v\n%s", err, n.Append(nil))
		}
		if diff := cmp.Diff(n, again); diff != "" {
			t.Errorf("what was written reads differently: %s", diff)
		}
		for _, p := range n.References {
			if !storepath.Valid(p) {
				t.Errorf("reference %q", p)
			}
		}
	})
}
