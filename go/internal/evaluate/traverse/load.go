package traverse

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"hercules/internal/nix/evaluator"
	"hercules/internal/wire/agentapi"
)

// first loads the root, in the first worker, and says whether there is anything to walk.
func (wk *worker) first() bool {
	w := wk.walk
	top, err := wk.load()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && !w.stopped {
		if !isUserError(err) {
			w.failLocked(err)
			return false
		}
		wk.unsent = append(wk.unsent, w.errorEvent([]string{}, err))
	}
	var names []string
	if top != nil {
		wk.unsent = append(wk.unsent, top.events([]string{}, w.derivationAttrs)...)
		names = top.names
	}
	w.loaded = true
	w.finish(w.root, wk.unsent, names)
	wk.unsent = nil
	return len(names) > 0 && !w.stopped
}

// isUserError says whether an error is a finding and not a failure of ours.
func isUserError(err error) bool {
	if _, ok := errors.AsType[*evaluator.EvalError](err); ok {
		return true
	}
	if c, ok := errors.AsType[*evaluator.CrashError](err); ok {
		return !errors.Is(c, evaluator.ErrClosed)
	}
	_, ok := errors.AsType[*unlockedError](err)
	return ok
}

// load evaluates up to the value that is walked. A nil result means that there is none to walk.
func (wk *worker) load() (*result, error) {
	w := wk.walk
	if err := wk.start(); err != nil {
		return nil, err
	}
	if w.job.Flake != "" {
		if err := wk.checkLocked(w.job.Flake); err != nil {
			return nil, err
		}
	}
	var hasConfig bool
	if err := wk.ask("hci.begin", &hasConfig); err != nil {
		return nil, err
	}
	if hasConfig && w.job.Selector.ConfigOrLegacy != nil {
		wk.unsent = append(wk.unsent, agentapi.EvaluateEvent{JobConfig: &agentapi.JobConfig{}})
		return nil, wk.handlers()
	}
	if hasConfig {
		if err := wk.checkInputs(); err != nil {
			return nil, err
		}
	}
	var top *result
	var bad error
	err := wk.proc.Run(w.ctx, "hci.top", func(data []byte) { top, bad = parseResult(data) })
	if err == nil {
		err = bad
	}
	wk.rootRSS = wk.proc.RSS()
	return top, err
}

// ask runs a command with one result.
func (wk *worker) ask(expr string, v any) error {
	var bad error
	got := false
	if err := wk.proc.Run(wk.walk.ctx, expr, func(data []byte) { got, bad = true, unmarshal(data, v) }); err != nil {
		return err
	}
	if bad == nil && !got {
		bad = fmt.Errorf("%s: the evaluator gave no result", expr)
	}
	return bad
}

// checkInputs makes sure that extra inputs, which are flakes too, are locked.
func (wk *worker) checkInputs() error {
	inputs := wk.walk.in.Inputs
	for _, name := range slices.Sorted(maps.Keys(inputs)) {
		ref := inputs[name].Flake
		if ref == nil {
			arg, err := evaluator.String(name)
			if err != nil {
				return err
			}
			var path string
			if err := wk.ask("hci.archive "+arg, &path); err != nil {
				return err
			}
			path = "path:" + path
			ref = &path
		}
		if err := wk.checkLocked(*ref); err != nil {
			return err
		}
	}
	return nil
}

// handler is what lib/jobs.nix says about a job.
type handler struct {
	Kind        string `json:"kind"`
	Name        string `json:"name"`
	ExtraInputs map[string]struct {
		Project string  `json:"project"`
		Ref     *string `json:"ref"`
	} `json:"extraInputs"`
	When *agentapi.TimeConstraints `json:"when"`
}

// handlers reports the jobs of herculesCI, onPush first, each kind in order of names.
func (wk *worker) handlers() error {
	var bad error
	err := wk.proc.Run(wk.walk.ctx, "hci.handlers", func(data []byte) {
		var h handler
		if err := unmarshal(data, &h); err != nil {
			bad = err
			return
		}
		wk.unsent = append(wk.unsent, h.event(wk.walk.job.IsFlakeJob))
	})
	if err != nil {
		return err
	}
	return bad
}

func (h *handler) event(isFlake bool) agentapi.EvaluateEvent {
	inputs := agentapi.Map[string, agentapi.InputDeclaration]{}
	for name, i := range h.ExtraInputs {
		inputs[name] = agentapi.InputDeclaration{SiblingInput: &agentapi.SiblingInput{Project: i.Project, Ref: i.Ref}}
	}
	if h.Kind == "onPush" {
		return agentapi.EvaluateEvent{OnPushHandlerEvent: &agentapi.OnPushHandlerEvent{HandlerName: h.Name, HandlerExtraInputs: inputs, IsFlake: isFlake}}
	}
	e := &agentapi.OnScheduleHandlerEvent{HandlerName: h.Name, HandlerExtraInputs: inputs, IsFlake: isFlake}
	if h.When != nil {
		e.When = *h.When
	}
	return agentapi.EvaluateEvent{OnScheduleHandlerEvent: e}
}
