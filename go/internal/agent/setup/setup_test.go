package setup_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"hercules/internal/agent/setup"
	"hercules/internal/nix/nixconf"
	"hercules/internal/secrets"
	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSetup(t *testing.T, dir, config, caches string) *setup.Setup {
	t.Helper()
	n := testnix.Versions(t)[0]
	nix, err := nixconf.LoadEnv(t.Context(), filepath.Join(n.Bin, "nix"), []string{"HOME=/var/empty", "NIX_CONF_DIR=/var/empty", "PATH=" + n.Bin, "NIX_CONFIG=" + config}, nil)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := secrets.ParseBinaryCaches("binary-caches.json", []byte(caches))
	if err != nil {
		t.Fatal(err)
	}
	s, err := setup.New(dir, nix, map[string]string{"cores": "3"}, parsed, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Without caches nothing is set that Nix has anyway.
func TestNoCaches(t *testing.T) {
	t.Parallel()
	s := newSetup(t, t.TempDir(), "substituters = https://cache.example", "{}")
	if s.Settings["trusted-public-keys"] != "" || s.Evaluator["substituters"] != "" || s.Netrc != "" || s.Evaluator["cores"] != "3" {
		t.Errorf("settings: %v %v", s.Settings, s.Evaluator)
	}
	if strings.Join(s.Substituters, " ") != "https://cache.example" {
		t.Errorf("substituters: %q", s.Substituters)
	}
}

func TestWhatLeavesTheMachine(t *testing.T) {
	t.Parallel()
	s := newSetup(t, t.TempDir(), "substituters = https://me:p%40ss@cache.example/x?y=a@b https://plain.example/@scope",
		`{"own": {"kind": "NixCache", "storeURI": "s3://token@bucket", "publicKeys": [], "signingKeys": []}}`)
	if got := strings.Join(s.Hidden(), " "); got != "token@ me:p%40ss@" {
		t.Errorf("hidden: %s", got)
	}
	text := "cannot get 'https://me:p%40ss@cache.example/x' nor 's3://token@bucket', but 'https://plain.example/@scope'"
	want := "cannot get 'https://[redacted]@cache.example/x' nor 's3://[redacted]@bucket', but 'https://plain.example/@scope'"
	if got := *s.ShownStatus(agentapi.TaskStatus{Exceptional: &text}).Exceptional; got != want {
		t.Errorf("status: %s", got)
	}
	trace := text
	events := []agentapi.EvaluateEvent{
		{Message: &agentapi.Message{Message: text}},
		{AttributeError: &agentapi.AttributeErrorEvent{ErrorMessage: text, Trace: &trace}},
		{PushedAll: nil},
	}
	shown := s.ShownEvents(events)
	if shown[0].Message.Message != want || shown[1].AttributeError.ErrorMessage != want || *shown[1].AttributeError.Trace != want {
		t.Errorf("events: %+v %+v", shown[0].Message, shown[1].AttributeError)
	}
	if events[0].Message.Message != text || *events[1].AttributeError.Trace != text {
		t.Error("the events of the sender were changed")
	}
}

// A setup is removed when it is not the newest any more and its last user has gone.
func TestHolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const acme = `{"acme": {"kind": "CachixCache", "publicKeys": [], "authToken": "hush"}}`
	first, second := newSetup(t, dir, "", acme), newSetup(t, dir, "", acme)
	there := func(s *setup.Setup) bool { _, err := os.Stat(s.Netrc); return err == nil }
	h := setup.NewHolder(slog.New(slog.DiscardHandler), first)
	_, release := h.Take()
	h.Replace(second)
	if !there(first) {
		t.Error("removed while it was used")
	}
	release()
	if there(first) {
		t.Error("not removed after its last use")
	}
	got, release := h.Take()
	release()
	if got != second || !there(second) {
		t.Error("the newest is not kept")
	}
	h.SetProblem("wrong")
	if s, problem := h.State(); s != second || problem != "wrong" {
		t.Errorf("state: %q", problem)
	}
	h.Replace(nil)
	if there(second) {
		t.Error("not removed at the end")
	}
}
