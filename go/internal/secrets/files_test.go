package secrets_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/formats"
	"hercules/internal/secrets"
)

func jwt(payload string) string {
	return "eyJhbGciOiJIUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadJoinToken(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"tok": "tok", " \n tok\n\n": "tok", "a\nb\r\nc\n": "a b c", "": "", "\n": ""} {
		got, err := secrets.ReadJoinToken(write(t, in))
		if err != nil || got.Reveal() != want {
			t.Errorf("%q: got %q, %v", in, got.Reveal(), err)
		}
	}
	if _, err := secrets.ReadJoinToken("/nonexistent/token.key"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/token.key") {
		t.Errorf("missing file: %v", err)
	}
}

func TestJoinTokenID(t *testing.T) {
	t.Parallel()
	std := "h." + base64.StdEncoding.EncodeToString([]byte(`{"sub":"t$1","x":"???>>>~~~"}`)) + ".s"
	for in, want := range map[string]string{
		jwt(`{"sub":"t$7c1e0009"}`): "7c1e0009", std: "1", jwt(`{"sub":"7c1e"}`): "", jwt(`{"sub":"t$"}`): "", jwt(`{"sub":5}`): "",
		jwt(`{"sub":null}`): "", jwt(`{}`): "", jwt(`[]`): "", jwt(`x`): "", "pretend-jwt": "", "": "", "a.%%.c": "", "a.b": "",
	} {
		got, err := secrets.JoinTokenID(secrets.NewSensitive(in))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v", in, got, err)
		}
		if err != nil && in != "" && strings.Contains(err.Error(), in) {
			t.Errorf("the error shows the token: %v", err)
		}
	}
}

func TestSession(t *testing.T) {
	t.Parallel()
	joinA := jwt(`{"sub":"t$a"}`)
	ofA, ofB := jwt(`{"parent":"a"}`), jwt(`{"parent":"b"}`)
	for name, c := range map[string]struct {
		join, kept string // "-": no file
		created    string // "": must not be asked; "!": refuses
		want       string // "": an error
		file       string
		warns      bool
	}{
		"no file":                         {joinA, "-", "new", "new", "new", false},
		"empty file":                      {joinA, "\n", "new\n", "new", "new", false},
		"sentinel":                        {joinA, "x\n", "new", "new", "new", false},
		"no file, refused":                {joinA, "-", "!", "", "x", false},
		"no file, empty answer":           {joinA, "-", " ", "", "x", false},
		"same join token":                 {joinA, ofA + "\n", "", ofA, ofA + "\n", false},
		"other join token":                {joinA, ofB, "new", "new", "new", false},
		"other join token, refused":       {joinA, ofB, "!", ofB, ofB, true},
		"opaque session":                  {joinA, "pretend-jwt", "", "pretend-jwt", "pretend-jwt", true},
		"opaque join token":               {"pretend-jwt", ofA, "", ofA, ofA, true},
		"empty join token, opaque before": {"", "old", "", "old", "old", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "secretState", "session.key")
			if c.kept != "-" {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(c.kept), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var log bytes.Buffer
			asked := false
			s := secrets.Sessions{Path: path, Log: slog.New(slog.NewTextHandler(&log, nil)), Create: func(_ context.Context, join secrets.Sensitive) (secrets.Sensitive, error) {
				asked = true
				if join.Reveal() != c.join {
					t.Errorf("asked with %q", join.Reveal())
				}
				if b, err := os.ReadFile(path); c.kept != ofB && (err != nil || string(b) != "x") {
					t.Errorf("the file is %q, %v when the service is asked, want the sentinel", b, err)
				}
				if c.created == "!" {
					return secrets.Sensitive{}, errors.New("403")
				}
				return secrets.NewSensitive(c.created), nil
			}}
			got, err := s.Session(t.Context(), secrets.NewSensitive(c.join))
			if (err == nil) != (c.want != "") || got.Reveal() != c.want || asked != (c.created != "") {
				t.Errorf("got %q, %v, asked %v", got.Reveal(), err, asked)
			}
			b, err := os.ReadFile(path)
			if err != nil || string(b) != c.file {
				t.Errorf("the file is %q, %v, want %q", b, err, c.file)
			}
			if asked && string(b) != c.kept {
				wantMode(t, path, 0o600)
				wantMode(t, filepath.Dir(path), 0o700)
			}
			if c.warns != strings.Contains(log.String(), "level=WARN") {
				t.Errorf("log: %s", log.String())
			}
			if strings.Contains(log.String(), "eyJ") {
				t.Errorf("the log shows a token: %s", log.String())
			}
		})
	}
}

func TestSessionIsNotAskedForWhenItCannotBeKept(t *testing.T) {
	t.Parallel()
	s := secrets.Sessions{Path: filepath.Join(write(t, ""), "session.key"), Log: slog.New(slog.DiscardHandler), Create: func(context.Context, secrets.Sensitive) (secrets.Sensitive, error) {
		t.Error("a session was made")
		return secrets.Sensitive{}, nil
	}}
	if _, err := s.Session(t.Context(), secrets.NewSensitive("j")); err == nil {
		t.Error("no error")
	}
}

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != want {
		t.Errorf("%s has mode %v, want %v", path, st.Mode().Perm(), want)
	}
}

func TestBinaryCaches(t *testing.T) {
	t.Parallel()
	path := write(t, `{
		"zz": {"kind": "NixCache", "storeURI": "s3://b", "publicKeys": ["p:1"], "signingKeys": ["s:1", "s:2"]},
		"acme": {"kind": "CachixCache", "publicKeys": ["q"], "signingKeys": ["k"], "authToken": "tok", "extra": 1},
		"pull": {"kind": "CachixCache", "publicKeys": ["r"]},
		"token": {"kind": "CachixCache", "publicKeys": [], "authToken": "t2", "apiVersion": null},
		"future": {"kind": "AtticCache", "apiVersion": "2"}
	}`)
	got, err := secrets.ReadBinaryCaches(path)
	if err != nil {
		t.Fatal(err)
	}
	want := &secrets.BinaryCaches{
		Caches: []secrets.BinaryCache{
			{Name: "acme", Kind: "CachixCache", PublicKeys: []string{"q"}, SigningKeys: []secrets.Sensitive{secrets.NewSensitive("k")}, AuthToken: secrets.NewSensitive("tok")},
			{Name: "pull", Kind: "CachixCache", PublicKeys: []string{"r"}},
			{Name: "token", Kind: "CachixCache", PublicKeys: []string{}, AuthToken: secrets.NewSensitive("t2")},
			{Name: "zz", Kind: "NixCache", StoreURI: "s3://b", PublicKeys: []string{"p:1"}, SigningKeys: []secrets.Sensitive{secrets.NewSensitive("s:1"), secrets.NewSensitive("s:2")}},
		},
		Warnings: []string{
			path + `:3:98: "acme": a CachixCache has no key "extra"; it is ignored`,
			path + `:4:3: "pull": neither a signing key nor a token; nothing is pushed to it`,
			path + `:6:3: "future": unknown kind "AtticCache"; the entry is ignored`,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"acme", "token", "zz"}, got.PushCaches()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"acme", "token"}, got.PushCaches(formats.KindCachixCache)); diff != "" {
		t.Error(diff)
	}
	empty, err := secrets.ReadBinaryCaches(write(t, "{}"))
	if err != nil || len(empty.Warnings) != 1 || len(empty.PushCaches()) != 0 {
		t.Errorf("{}: %+v, %v", empty, err)
	}
}

func TestBinaryCachesErrors(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][]string{
		``: {"ends too early"}, `[]`: {"expected an object"}, `{"a":`: {"ends too early"}, `{"a":1}`: {`"a": expected an object`},
		`{"a":{}}`: {`"a": expected a text "kind"`}, `{"a":{"kind":1}}`: {`"a": expected a text "kind"`},
		`{"a":{"kind":"NixCache","publicKeys":[],"signingKeys":[]}}`:                   {`"a"`, "storeURI"},
		`{"a":{"kind":"NixCache","storeURI":"u","publicKeys":[]}}`:                     {`"a"`, "signingKeys"},
		`{"a":{"kind":"NixCache","storeURI":1,"publicKeys":[],"signingKeys":[]}}`:      {`"a"`, "storeURI"},
		`{"a":{"kind":"CachixCache"}}`:                                                 {`"a"`, "publicKeys"},
		`{"a":{"kind":"CachixCache","publicKeys":["x",1]}}`:                            {`"a"`, "publicKeys"},
		`{"a":{"kind":"CachixCache","publicKeys":[],"apiVersion":"1"}}`:                {`"a": apiVersion`},
		"{\"a\":{\"kind\":\"CachixCache\"},\n\"b\":[],\n\"c\":{\"kind\":\"Unheard\"}}": {`file:1:2: "a"`, `file:2:1: "b"`},
		`{"a":{"kind":"X"},"a":{"kind":"X"}}`:                                          {"second time"},
	} {
		_, err := secrets.ReadBinaryCaches(write(t, in))
		if err == nil {
			t.Errorf("%s was accepted", in)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: got %v, want %s", in, err, w)
			}
		}
	}
	if _, err := secrets.ReadBinaryCaches("/nonexistent/b.json"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "binaryCachesPath") {
		t.Errorf("missing file: %v", err)
	}
	_, err := secrets.ReadBinaryCaches(write(t, `{"a":{"kind":"CachixCache","publicKeys":1,"signingKeys":["hunter2"],"authToken":"hunter2"}}`))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error shows a secret: %v", err)
	}
}

func TestWriteNetrc(t *testing.T) {
	t.Parallel()
	caches, err := secrets.ParseBinaryCaches("b", []byte(`{"acme":{"kind":"CachixCache","publicKeys":[],"authToken":"tok"},
		"n":{"kind":"NixCache","storeURI":"u","publicKeys":[],"signingKeys":[]},"p":{"kind":"CachixCache","publicKeys":[]},
		"own":{"kind":"CachixCache","publicKeys":[],"authToken":"tok2","apiBaseUrl":"https://cache.example:8443/prefix/"}}`))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	logins := append(caches.CachixLogins(), secrets.Login{Host: "git.example.org", User: "x", Password: secrets.NewSensitive("p#\"w")})
	for operator, before := range map[string]string{"": "", "machine a login b password c": "machine a login b password c\n", "machine a\n": "machine a\n"} {
		path, err := secrets.WriteNetrc(dir, []byte(operator), logins)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := before + "machine acme.cachix.org login authtoken password tok\nmachine cache.example login authtoken password tok2\nmachine git.example.org login x password p#\"w\n"
		if string(b) != want || !strings.HasPrefix(filepath.Base(path), "tmp-netrc") || filepath.Ext(path) != ".key" {
			t.Errorf("%s: %s", path, b)
		}
		wantMode(t, path, 0o600)
	}
	for _, l := range []secrets.Login{
		{Host: "h", User: "u", Password: secrets.NewSensitive("a b")},
		{Host: "h\nmachine x", User: "u", Password: secrets.NewSensitive("p")},
		{Host: "h", Password: secrets.NewSensitive("p")},
		{Host: "h", User: "u"},
	} {
		if _, err := secrets.WriteNetrc(t.TempDir(), nil, []secrets.Login{l}); err == nil || strings.Contains(err.Error(), "a b") {
			t.Errorf("%+v: got %v", l, err)
		}
	}
}

func FuzzParseBinaryCaches(f *testing.F) {
	f.Add([]byte(`{"a":{"kind":"CachixCache","publicKeys":["x"],"signingKeys":["hunter2"],"authToken":"hunter2"},"b":{"kind":"Z"}}`))
	f.Add([]byte(`{"a":{"kind":"NixCache","storeURI":"u","publicKeys":[],"signingKeys":[]}}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := secrets.ParseBinaryCaches("f", data)
		if (b == nil) == (err == nil) {
			t.Errorf("got %v, %v", b, err)
		}
	})
}

func FuzzJoinTokenID(f *testing.F) {
	f.Add(jwt(`{"sub":"t$7c1e0009"}`))
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		if id, err := secrets.JoinTokenID(secrets.NewSensitive(token)); (id == "") != (err != nil) {
			t.Errorf("got %q, %v", id, err)
		}
	})
}
