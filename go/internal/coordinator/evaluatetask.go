package coordinator

import (
	"errors"
	"fmt"

	"hercules/internal/coordinator/plan"
	"hercules/internal/wire/agentapi"
)

var errNoInputs = errors.New("extra inputs of jobs can't be found here")

// resolve finds the extra inputs of a handler.
func (r *jobRun) resolve(cmd plan.StartEvaluation) (agentapi.Map[string, agentapi.ImmutableInput], error) {
	inputs := agentapi.Map[string, agentapi.ImmutableInput]{}
	for name, d := range cmd.Inputs {
		if d.SiblingInput == nil {
			return nil, fmt.Errorf("extra input %s of %s is of an unknown kind", name, cmd.Evaluation)
		}
		err := errNoInputs
		if r.job.ExtraInputs != nil {
			inputs[name], err = r.job.ExtraInputs(d.SiblingInput.Project, d.SiblingInput.Ref)
		}
		if err != nil {
			return nil, fmt.Errorf("extra input %s (project %s) of %s: %w", name, d.SiblingInput.Project, cmd.Evaluation, err)
		}
	}
	return inputs, nil
}

// task makes the message for an evaluation.
func (r *jobRun) task(cmd plan.StartEvaluation, logToken string, inputs agentapi.Map[string, agentapi.ImmutableInput]) *agentapi.EvaluateTask {
	j := &r.job
	t := &agentapi.EvaluateTask{
		ID: cmd.Task, LogToken: logToken, IsFlakeJob: j.Flake,
		OtherInputs:   agentapi.Map[string, string]{},
		InputMetadata: r.metadata(),
		Inputs:        agentapi.Map[string, agentapi.ImmutableInput]{},
		AutoArguments: agentapi.Map[string, agentapi.SubPathOf](j.AutoArguments),
		NixPath:       agentapi.List[agentapi.NixPathElement](j.NixPath),
	}
	for name, url := range r.urls {
		t.OtherInputs[name] = url
		t.Inputs[name] = agentapi.ImmutableInput{ArchiveURL: &url}
	}
	t.PrimaryInput = r.urls["src"]
	if g := j.Source.Git; g != nil {
		git := *g
		if git.Ref == "" {
			git.Ref = j.Source.Ref
		}
		if git.Rev == "" {
			git.Rev = j.Source.Rev
		}
		t.Inputs["src"] = agentapi.ImmutableInput{Git: &git}
	}
	if j.CISystems != nil {
		systems := agentapi.Map[string, agentapi.UnitValue]{}
		for _, s := range j.CISystems {
			systems[s] = agentapi.UnitValue{}
		}
		t.CISystems = &systems
	}
	if len(j.Credentials) > 0 {
		creds := agentapi.List[agentapi.Credential](j.Credentials)
		t.ExtraGitCredentials = &creds
	}
	switch cmd.Kind {
	case plan.OnPush:
		t.Selector.OnPush = &agentapi.OnPush{Name: cmd.Handler, Inputs: inputs}
	case plan.OnSchedule:
		t.Selector.OnSchedule = &agentapi.OnSchedule{Name: cmd.Handler, ExtraInputs: inputs}
	default:
		t.Selector.ConfigOrLegacy = &agentapi.Unit{}
	}
	return t
}
