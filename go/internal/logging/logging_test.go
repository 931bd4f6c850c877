package logging_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hercules/internal/logging"
)

func TestLevelNames(t *testing.T) {
	t.Parallel()
	names := []string{"DebugS", "InfoS", "NoticeS", "WarningS", "ErrorS", "CriticalS", "AlertS", "EmergencyS"}
	var out bytes.Buffer
	log := logging.New(&out, slog.LevelDebug, logging.Journal)
	for i, name := range names {
		level, err := logging.ParseLevel(name)
		if err != nil {
			t.Fatal(err)
		}
		out.Reset()
		log.Log(t.Context(), level, "m")
		if got, want := out.String(), fmt.Sprintf("<%d>m\n", 7-i); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	for _, bad := range []string{"", "infos", "Info", "INFO", "Debug"} {
		if _, err := logging.ParseLevel(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestLevelsInBetween(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := logging.New(&out, slog.Level(-100), logging.Journal)
	for level, want := range map[slog.Level]byte{-50: '7', -4: '7', -1: '7', 1: '6', 3: '5', 7: '4', 11: '3', 50: '0'} {
		out.Reset()
		log.Log(t.Context(), level, "m")
		if got := out.Bytes()[1]; got != want {
			t.Errorf("level %d: priority %c, want %c", level, got, want)
		}
	}
}

func TestThreshold(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	var level slog.LevelVar
	level.Set(slog.LevelWarn)
	log := logging.New(&out, &level, logging.Journal)
	log.Info("no")
	log.Warn("yes")
	level.Set(slog.LevelDebug)
	log.Debug("now")
	if got, want := out.String(), "<4>yes\n<7>now\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type loud struct{}

func (loud) LogValue() slog.Value { return slog.StringValue("resolved") }

func TestLines(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		log  func(*slog.Logger)
		want string
	}{
		"message alone": {func(l *slog.Logger) { l.Info("task done") }, `task done`},
		"kinds": {func(l *slog.Logger) {
			l.Info("m", "s", "x", "n", 3, "b", true, "d", 1500*time.Millisecond, "e", errors.New("no such file"), "v", loud{}, "nil", nil)
		}, `m s=x n=3 b=true d=1.5s e="no such file" v=resolved nil=<nil>`},
		"empty and odd values": {
			func(l *slog.Logger) {
				l.Info("m", "a", "", "b", "x=y", "c", `say "hi"`, "d", "a\nb\x1b[1m", "e", "\xff")
			},
			`m a="" b="x=y" c="say \"hi\"" d="a\nb\x1b[1m" e="\xff"`,
		},
		"a message cannot begin a line": {func(l *slog.Logger) { l.Info("a\n<0>b \"c\" \x1b[2J") }, `a\n<0>b "c" \x1b[2J`},
		"unicode stays":                 {func(l *slog.Logger) { l.Info("grün", "k", "œuvre") }, `grün k=œuvre`},
		"groups": {func(l *slog.Logger) {
			l.With("task", "1").WithGroup("nix").With("drv", "a").Info("m", "out", "b", slog.Group("g", "x", 1), slog.Group("", "y", 2))
		}, `m task=1 nix.drv=a nix.out=b nix.g.x=1 nix.y=2`},
		"siblings do not share": {func(l *slog.Logger) {
			base := l.With("a", 1)
			_ = base.With("b", 2)
			base.With("c", 3).Info("m")
		}, `m a=1 c=3`},
		"tokens": {func(l *slog.Logger) {
			l.With("h", "Bearer abcdef123456").Info("get https://u:p@example.org/x", "err", errors.New("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ0JDEifQ.c2ln refused"))
		}, `m`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			c.log(logging.New(&out, slog.LevelDebug, logging.Journal))
			want := "<6>" + c.want + "\n"
			if name == "tokens" {
				want = `<6>get https://[redacted]@example.org/x h="Bearer [redacted]" err="Authorization: Bearer [redacted] refused"` + "\n"
			}
			if got := out.String(); got != want {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
		})
	}
}

func TestStyles(t *testing.T) {
	t.Parallel()
	r := slog.NewRecord(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), slog.LevelWarn, "m", 0)
	r.AddAttrs(slog.Int("n", 1))
	for style, want := range map[logging.Style]string{
		logging.Plain:    "2030-01-02T03:04:05Z WARN m n=1\n",
		logging.Terminal: "03:04:05 \x1b[33mWARN\x1b[0m m n=1\n",
		logging.Journal:  "<4>m n=1\n",
	} {
		var out bytes.Buffer
		if err := logging.New(&out, slog.LevelInfo, style).Handler().Handle(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	}
}

func TestStyleOf(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	env := func(v string) func(string) string {
		return func(k string) string {
			if k == "JOURNAL_STREAM" {
				return v
			}
			return ""
		}
	}
	for stream, want := range map[string]logging.Style{
		"": logging.Plain, "8:12": logging.Plain, "garbage": logging.Plain,
		fmt.Sprintf("%d:%d", sys.Dev, sys.Ino): logging.Journal,
	} {
		if got := logging.StyleOf(f, env(stream)); got != want {
			t.Errorf("JOURNAL_STREAM=%s: style %d, want %d", stream, got, want)
		}
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain text, a@b.example":                                       "plain text, a@b.example",
		"https://example.org/a@b":                                       "https://example.org/a@b",
		"https://example.org/?x=a://b@c":                                "https://example.org/?x=a://[redacted]@c",
		"git clone https://x-token:abc@example.org/r.git and ftp://u@h": "git clone https://[redacted]@example.org/r.git and ftp://[redacted]@h",
		"s3://key:se%40cret@bucket?region=x":                            "s3://[redacted]@bucket?region=x",
		`{"token":"eyJhbGciOi.eyJzdWIi.sig-_"}`:                         `{"token":"[redacted]"}`,
		"Authorization: Basic dXNlcjpwYXNz":                             "Authorization: Basic [redacted]",
		"basic information; the bearer":                                 "basic information; the bearer",
	} {
		if got := logging.Redact(in); got != want {
			t.Errorf("%s\n got %s\nwant %s", in, got, want)
		}
	}
}

func FuzzLineIsOneLine(f *testing.F) {
	f.Add("m", "k", "v")
	f.Add("a\nb", "k=\n", "\x1b[0m\r\u2028")
	f.Fuzz(func(t *testing.T, message, key, value string) {
		var out bytes.Buffer
		logging.New(&out, slog.LevelInfo, logging.Journal).Info(message, key, value)
		got := out.String()
		if strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\n") || strings.ContainsAny(got, "\x1b\r\x00") {
			t.Errorf("not one clean line: %q", got)
		}
	})
}
