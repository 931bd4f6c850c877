// Package event holds what a coordinator tells its observers: the live view and the --json output of `hci run`,
// later the dashboard. It is plain data; it must not know who produces or who shows it.
//
// Every event encodes as one JSON object: the keys "event" (the name, stable), "time", "job" (absent for events
// of agents) and the keys of its body.
package event

import (
	"bytes"
	"encoding/json"
	"time"

	"hercules/internal/wire/agentapi"
)

// Event is one thing that happened.
type Event struct {
	Time time.Time
	// Job is empty for events that belong to no job.
	Job  string
	Body Body
}

// Body is the content of an event: a pointer-free struct of this package.
type Body interface {
	// EventName is the stable name of the event in JSON.
	EventName() string
}

// MarshalJSON puts the keys of the body beside "event", "time" and "job".
func (e Event) MarshalJSON() ([]byte, error) {
	head, err := json.Marshal(struct {
		Event string    `json:"event"`
		Time  time.Time `json:"time"`
		Job   string    `json:"job,omitempty"`
	}{e.Body.EventName(), e.Time.UTC(), e.Job})
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(e.Body)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(body, []byte("{}")) {
		return head, nil
	}
	out := make([]byte, 0, len(head)+len(body))
	out = append(out, head[:len(head)-1]...)
	out = append(out, ',')
	return append(out, body[1:]...), nil
}

// Status is how a job, an evaluation or an attempt to build ended.
type Status string

// The statuses. DependencyFailed is for builds only, Failed of a job means that at least one required thing failed.
const (
	Succeeded        Status = "success"
	Failed           Status = "failure"
	DependencyFailed Status = "dependency-failure"
	// Errored: it could not be done, whatever its result would have been: agent lost, push failed, no agent fits.
	Errored   Status = "error"
	Cancelled Status = "cancelled"
)

// Outcome is what became of an attribute.
type Outcome string

// The outcomes. Those for which OK holds do not fail the job.
const (
	// Good: built, or, of an attribute of which only the dependencies are wanted, these are built.
	Good Outcome = "good"
	// FailedAsExpected: its build had to fail, and did.
	FailedAsExpected Outcome = "failed-as-expected"
	// FailedIgnored: it failed and may.
	FailedIgnored Outcome = "failed-ignored"
	// NotRun: an effect whose dependencies are there; this coordinator lists effects and does not run them.
	NotRun Outcome = "not-run"

	// Bad: its build failed.
	Bad Outcome = "bad"
	// BadDependency: something that it needs failed.
	BadDependency Outcome = "bad-dependency"
	// UnexpectedSuccess: its build had to fail, and did not.
	UnexpectedSuccess Outcome = "unexpected-success"
	// EvaluationError: there is no derivation because evaluation failed.
	EvaluationError Outcome = "evaluation-error"
	// BuildError: the build could not be done (see Errored).
	BuildError Outcome = "build-error"
	// Stopped: cancelled before it was decided.
	Stopped Outcome = "stopped"
)

// OK tells whether the outcome is one of those that do not fail the job.
func (o Outcome) OK() bool {
	switch o {
	case Good, FailedAsExpected, FailedIgnored, NotRun:
		return true
	}
	return false
}

// JobStarted is the first event of a job.
type JobStarted struct {
	Name string `json:"name"`
	Ref  string `json:"ref"`
	Rev  string `json:"rev"`
}

// Handler tells of a job that herculesCI declares.
type Handler struct {
	Name string `json:"name"`
	// Kind is "onPush" or "onSchedule".
	Kind string `json:"kind"`
	// Selected: it is evaluated as part of this job.
	Selected bool                      `json:"selected"`
	When     *agentapi.TimeConstraints `json:"when,omitempty"`
}

// EvaluationStarted says that an agent works on an evaluation. Evaluation is "" for the configuration (which is
// also the walk of a repository without herculesCI), "onPush.NAME" or "onSchedule.NAME" for a handler.
type EvaluationStarted struct {
	Evaluation string      `json:"evaluation"`
	Task       agentapi.ID `json:"task"`
	Agent      string      `json:"agent"`
}

// EvaluationProgress counts what an evaluation has reported so far. Sent after each batch.
type EvaluationProgress struct {
	Evaluation  string `json:"evaluation"`
	Attributes  int    `json:"attributes"`
	Errors      int    `json:"errors"`
	Derivations int    `json:"derivations"`
	Requested   int    `json:"requested"`
}

// EvaluationFinished ends an evaluation. Success means only that it ran: see EvaluationError of attributes.
type EvaluationFinished struct {
	Evaluation string      `json:"evaluation"`
	Task       agentapi.ID `json:"task,omitempty"`
	Status     Status      `json:"status"`
	Reason     string      `json:"reason,omitempty"`
	Attributes int         `json:"attributes"`
	Errors     int         `json:"errors"`
	DurationMS int64       `json:"durationMs"`
	// Retry: the evaluation is done again, by a new task.
	Retry bool `json:"retry,omitempty"`
}

// Attribute is a derivation found by evaluation.
type Attribute struct {
	Evaluation string                 `json:"evaluation"`
	Path       []string               `json:"path"`
	Drv        string                 `json:"drv"`
	Type       agentapi.AttributeType `json:"type"`
	// Selected: it passes the attribute filter of the job. Others are not built for their own sake.
	Selected bool `json:"selected"`
	// Secrets of an effect, by the name under which it sees them.
	Secrets map[string]string `json:"secrets,omitempty"`
}

// AttributeError is an attribute that could not be evaluated.
type AttributeError struct {
	Evaluation string   `json:"evaluation"`
	Path       []string `json:"path"`
	Message    string   `json:"message"`
	Trace      string   `json:"trace,omitempty"`
	Type       string   `json:"errorType,omitempty"`
	Drv        string   `json:"drv,omitempty"`
	Selected   bool     `json:"selected"`
}

// AttributeIFD says that an attribute waits (Done false), or no longer waits, for an import from derivation.
type AttributeIFD struct {
	Evaluation string   `json:"evaluation"`
	Path       []string `json:"path"`
	Drv        string   `json:"drv"`
	Output     string   `json:"output"`
	Done       bool     `json:"done"`
}

// BuildRequired says that evaluation needs the contents of an output (import from derivation).
type BuildRequired struct {
	Evaluation string `json:"evaluation"`
	Drv        string `json:"drv"`
	Output     string `json:"output"`
}

// AttributeResult is the final word on a selected attribute.
type AttributeResult struct {
	Evaluation string                 `json:"evaluation"`
	Path       []string               `json:"path"`
	Drv        string                 `json:"drv,omitempty"`
	Type       agentapi.AttributeType `json:"type,omitempty"`
	Outcome    Outcome                `json:"outcome"`
	OK         bool                   `json:"ok"`
	// Cause is the derivation whose failure decided, when it is another than Drv.
	Cause  string `json:"cause,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Message is for people and concerns a whole evaluation. One of type Error fails the job.
type Message struct {
	Evaluation string               `json:"evaluation"`
	Type       agentapi.MessageType `json:"type"`
	Message    string               `json:"message"`
}

// BuildQueued says that a derivation is to be built. It comes once for each attempt.
type BuildQueued struct {
	Drv      string      `json:"drv"`
	Attempt  agentapi.ID `json:"attempt"`
	Platform string      `json:"platform"`
	// IFD: an evaluation waits for it.
	IFD bool `json:"ifd"`
}

// BuildStarted says that an agent works on it.
type BuildStarted struct {
	Drv     string      `json:"drv"`
	Attempt agentapi.ID `json:"attempt"`
	Task    agentapi.ID `json:"task"`
	Agent   string      `json:"agent"`
}

// BuildPhase is a phase of the builder, from its log.
type BuildPhase struct {
	Drv   string      `json:"drv"`
	Task  agentapi.ID `json:"task"`
	Phase string      `json:"phase"`
}

// BuildRetried says that the attempt continues with a new task since the old one broke for reasons of its own.
type BuildRetried struct {
	Drv    string      `json:"drv"`
	Task   agentapi.ID `json:"task"`
	Reason string      `json:"reason"`
}

// BuildFinished ends an attempt. Task is empty when none ran (dependency failure, no fitting agent).
type BuildFinished struct {
	Drv        string            `json:"drv"`
	Attempt    agentapi.ID       `json:"attempt"`
	Task       agentapi.ID       `json:"task,omitempty"`
	Status     Status            `json:"status"`
	Cause      string            `json:"cause,omitempty"`
	Reason     string            `json:"reason,omitempty"`
	Outputs    map[string]string `json:"outputs,omitempty"`
	DurationMS int64             `json:"durationMs"`
}

// Log is a line of the log of a task: of a build when Drv is set, else of an evaluation.
type Log struct {
	Task       agentapi.ID `json:"task"`
	Drv        string      `json:"drv,omitempty"`
	Evaluation string      `json:"evaluation,omitempty"`
	// Builder: printed by the builder; otherwise a message of Nix with Level.
	Builder bool   `json:"builder,omitempty"`
	Level   int64  `json:"level"`
	Line    string `json:"line"`
}

// AgentConnected says that an agent joined or came back.
type AgentConnected struct {
	Agent     string   `json:"agent"`
	Hostname  string   `json:"hostname"`
	Version   string   `json:"version"`
	Nix       string   `json:"nix"`
	Platforms []string `json:"platforms"`
	Tasks     int64    `json:"concurrentTasks"`
}

// AgentGone says that an agent said goodbye (lost false) or was given up.
type AgentGone struct {
	Agent string `json:"agent"`
	Lost  bool   `json:"lost"`
}

// JobFinished is the last event of a job.
type JobFinished struct {
	Status Status `json:"status"`
	Counts Counts `json:"counts"`
}

// Counts sums up a job. Attributes are the selected ones with those that have an error.
type Counts struct {
	Attributes       int `json:"attributes"`
	Good             int `json:"good"`
	FailedAsExpected int `json:"failedAsExpected"`
	FailedIgnored    int `json:"failedIgnored"`
	NotRun           int `json:"notRun"`
	Bad              int `json:"bad"`
	Errors           int `json:"errors"`
	// Messages of type Error.
	Messages int `json:"messages"`
	// Builds by result; Realised is how many of Succeeded ran their builder, the rest was there or came from a cache.
	Builds    int `json:"builds"`
	Succeeded int `json:"succeeded"`
	Realised  int `json:"realised"`
	Failed    int `json:"failed"`
}

// EventName implements Body.
func (JobStarted) EventName() string { return "job-started" }

// EventName implements Body.
func (Handler) EventName() string { return "handler" }

// EventName implements Body.
func (EvaluationStarted) EventName() string { return "evaluation-started" }

// EventName implements Body.
func (EvaluationProgress) EventName() string { return "evaluation-progress" }

// EventName implements Body.
func (EvaluationFinished) EventName() string { return "evaluation-finished" }

// EventName implements Body.
func (Attribute) EventName() string { return "attribute" }

// EventName implements Body.
func (AttributeError) EventName() string { return "attribute-error" }

// EventName implements Body.
func (AttributeIFD) EventName() string { return "attribute-ifd" }

// EventName implements Body.
func (BuildRequired) EventName() string { return "build-required" }

// EventName implements Body.
func (AttributeResult) EventName() string { return "attribute-result" }

// EventName implements Body.
func (Message) EventName() string { return "message" }

// EventName implements Body.
func (BuildQueued) EventName() string { return "build-queued" }

// EventName implements Body.
func (BuildStarted) EventName() string { return "build-started" }

// EventName implements Body.
func (BuildPhase) EventName() string { return "build-phase" }

// EventName implements Body.
func (BuildRetried) EventName() string { return "build-retried" }

// EventName implements Body.
func (BuildFinished) EventName() string { return "build-finished" }

// EventName implements Body.
func (Log) EventName() string { return "log" }

// EventName implements Body.
func (AgentConnected) EventName() string { return "agent-connected" }

// EventName implements Body.
func (AgentGone) EventName() string { return "agent-gone" }

// EventName implements Body.
func (JobFinished) EventName() string { return "job-finished" }
