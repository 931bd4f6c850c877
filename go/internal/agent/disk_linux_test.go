package agent_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hercules/internal/testnix"
	"hercules/internal/wire/agentapi"
)

func TestFullWorkDirectory(t *testing.T) {
	t.Parallel()
	r := newRig(t, testnix.Versions(t)[0])
	work := filepath.Join(r.Dir(), "full")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", work, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("SKIP: cannot mount a small file system: " + err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(work, 0); err != nil {
			t.Error(err)
		}
	})
	r.cfg = r.config(map[string]any{"workDirectory": work})
	r.start()
	r.c.await("an agent", func() bool { return r.c.peer != nil })
	if f, err := os.Create(filepath.Join(work, "fill")); err == nil {
		_, _ = f.Write(make([]byte, 1<<20))
		f.Close()
	}
	rec, token := r.c.task()
	url := r.c.server.URL + "/src.tar.gz"
	r.c.send(agentapi.ServicePayload{StartEvaluation: &agentapi.EvaluateTask{
		ID: rec.id, LogToken: token, Selector: agentapi.Selector{ConfigOrLegacy: &agentapi.Unit{}},
		Inputs:        agentapi.Map[string, agentapi.ImmutableInput]{"src": {ArchiveURL: &url}},
		OtherInputs:   agentapi.Map[string, string]{"src": url},
		InputMetadata: agentapi.Map[string, agentapi.Map[string, json.RawMessage]]{"src": {"ref": json.RawMessage(`"refs/heads/x"`), "rev": json.RawMessage(`"0"`)}},
	}})
	if got := r.c.finished(rec); !strings.HasPrefix(got, "Exceptional ") || !strings.Contains(got, "no space left") {
		t.Errorf("status: %s", got)
	}
	// Builds do not need it.
	next := r.c.build(r.Instantiate(`sh "next" {} "echo > $out"`))
	if got := r.c.finished(next); got != "Successful" {
		t.Errorf("next: %s", got)
	}
}
