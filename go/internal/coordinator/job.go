package coordinator

import (
	"context"
	"encoding/json"
	"io"

	"hercules/internal/coordinator/event"
	"hercules/internal/wire/agentapi"
)

// Job is the work of one commit: the configuration is evaluated, then the selected handlers (or the file is walked
// when there is no herculesCI), then everything that these ask for is built.
type Job struct {
	// Name is shown to people and, when it suits, names the unpacked source directory.
	Name   string
	Source Source
	// Flake tells the agent to fetch Source.Git with Nix as a flake instead of unpacking Source.Archive.
	Flake bool
	// Handlers restricts which jobs of herculesCI are run, by name; empty means all of onPush.
	// "onSchedule.NAME" selects a scheduled job, "onPush.NAME" is the long form of NAME.
	Handlers []string
	// Attributes are patterns of the attributes that count (see plan.ParsePattern); empty means all.
	Attributes []string
	// CISystems restricts the default job of a flake; nil means no restriction.
	CISystems []string
	// ExtraInputs resolves the extra inputs of handlers by project and ref (nil when not given). An error fails the
	// handler. Nil: a handler with extra inputs fails.
	ExtraInputs func(project string, ref *string) (agentapi.ImmutableInput, error)
	// OtherInputs are further sources of a job that is no flake: identifier to stream of a gzipped tarball.
	OtherInputs   map[string]Archive
	AutoArguments map[string]agentapi.SubPathOf
	NixPath       []agentapi.NixPathElement
	Credentials   []agentapi.Credential
}

// Source is the commit.
type Source struct {
	Ref, Rev string
	// Git is sent as inputs.src when set; required for a flake. Its Rev and Ref are filled in from above when empty.
	Git *agentapi.ImmutableGitInput
	// Archive streams the source as a gzipped tarball; required unless it is a flake. It may be called more than once.
	Archive Archive
	// Metadata is added to inputMetadata.src.
	Metadata map[string]json.RawMessage
}

// Archive writes a gzipped tarball.
type Archive func(ctx context.Context, w io.Writer) error

// Result sums up a finished job.
type Result struct {
	Job    string
	Status event.Status
	Counts event.Counts
	// Attributes in the order of evaluation, then of their reports.
	Attributes []event.AttributeResult
	// Builds that did not succeed, in the order in which they ended.
	Failures []event.BuildFinished
	// Messages of type Error of the evaluations.
	Messages []event.Message
	// Evaluations that did not run to their end.
	EvaluationFailures []event.EvaluationFinished
}
