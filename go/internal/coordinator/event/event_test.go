package event_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

var update = flag.Bool("update", false, "write the golden files")

// The names and keys are read by people's scripts: a change of the golden file is a change of an interface.
func TestJSON(t *testing.T) {
	t.Parallel()
	const task, attempt = agentapi.ID("7c1e0002-52f4-4a6b-9b0d-3e8f6a21001e"), agentapi.ID("7c1e0005-52f4-4a6b-9b0d-3e8f6a210033")
	const drv = "/nix/store/8vfnpkz8v9a0qcpjb4salpmmxc3lgn3n-greeter-1.4.drv"
	path := []string{"packages", "x86_64-linux", "greeter"}
	minute := int64(37)
	at := time.Date(2026, 2, 1, 9, 30, 15, 500_000_000, time.FixedZone("", 3600))
	var got bytes.Buffer
	for _, b := range []event.Body{
		event.AgentConnected{Agent: "builder-7", Hostname: "builder-7", Version: "0.10.8", Nix: "2.31.2", Platforms: []string{"x86_64-linux"}, Tasks: 4},
		event.AgentGone{Agent: "builder-7", Lost: true},
		event.JobStarted{Name: "widgets", Ref: "refs/heads/main", Rev: "3f9b0c4de21a7785d60c1b9ae2f4471c8d5e6a90"},
		event.EvaluationStarted{Evaluation: "onPush.default", Task: task, Agent: "builder-7"},
		event.Handler{Name: "default", Kind: "onPush", Selected: true},
		event.Handler{Name: "nightly", Kind: "onSchedule", When: &agentapi.TimeConstraints{Minute: &minute}},
		event.Attribute{Evaluation: "onPush.default", Path: path, Drv: drv, Type: agentapi.Regular, Selected: true},
		event.Attribute{Path: []string{"effects", "deploy"}, Drv: drv, Type: agentapi.EffectType, Selected: true, Secrets: map[string]string{"aws": "staging-aws"}},
		event.AttributeError{Path: []string{}, Message: "error: stack overflow", Selected: true},
		event.AttributeError{Path: path, Message: "error: no", Trace: "… while", Type: "BuildException", Drv: drv},
		event.AttributeIFD{Path: path, Drv: drv, Output: "out"},
		event.BuildRequired{Drv: drv, Output: "out"},
		event.Message{Type: agentapi.ErrorMessage, Message: "Could not find anything to evaluate."},
		event.EvaluationProgress{Attributes: 1, Errors: 2, Derivations: 3, Requested: 4},
		event.BuildQueued{Drv: drv, Attempt: attempt, Platform: "x86_64-linux", IFD: true},
		event.BuildStarted{Drv: drv, Attempt: attempt, Task: task, Agent: "builder-7"},
		event.BuildPhase{Drv: drv, Task: task, Phase: "buildPhase"},
		event.Log{Task: task, Drv: drv, Builder: true, Line: "\x1b[32mok\x1b[0m"},
		event.Log{Task: task, Evaluation: "onPush.default", Level: 3, Line: "fetching"},
		event.BuildRetried{Drv: drv, Task: task, Reason: "lost worker"},
		event.BuildFinished{Drv: drv, Attempt: attempt, Task: task, Status: event.Succeeded, Outputs: map[string]string{"out": "/nix/store/7ya9k1y2inn48n093qwgc3kkjsy2swkz-greeter-1.4"}, DurationMS: 12},
		event.BuildFinished{Drv: drv, Attempt: attempt, Status: event.DependencyFailed, Cause: drv},
		event.EvaluationFinished{Task: task, Status: event.Errored, Reason: "lost worker", DurationMS: 5, Retry: true},
		event.AttributeResult{Path: path, Drv: drv, Type: agentapi.MustFail, Outcome: event.FailedAsExpected, OK: true},
		event.JobFinished{Status: event.Failed, Counts: event.Counts{Attributes: 1, Bad: 1, Builds: 1, Failed: 1}},
	} {
		e := event.Event{Time: at, Job: "j", Body: b}
		switch b.(type) {
		case event.AgentConnected, event.AgentGone:
			e.Job = ""
		}
		doc, err := json.Marshal(e)
		if err != nil {
			t.Fatalf("%T: %v", b, err)
		}
		got.Write(append(doc, '\n'))
	}
	golden := filepath.Join("testdata", "events.jsonl")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Error(diff)
	}
}
