package traverse

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"hercules/internal/nix/evaluator"
	"hercules/internal/wire/agentapi"
)

// result is what lib/walk.nix says about an attribute: [ NAME KIND … ].
type result struct {
	name  string
	kind  string
	drv   string                 // drv, effect, misplaced
	typ   agentapi.AttributeType // drv
	names []string               // set
}

func parseResult(data []byte) (*result, error) {
	var fields []json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	r := &result{}
	into := []any{&r.name, &r.kind}
	if len(fields) < 2 {
		return nil, errors.New("result of the evaluator is too short")
	}
	if err := json.Unmarshal(fields[1], &r.kind); err != nil {
		return nil, err
	}
	switch r.kind {
	case "drv":
		into = append(into, &r.drv, &r.typ)
	case "effect", "misplaced":
		into = append(into, &r.drv)
	case "set":
		into = append(into, &r.names)
	case "other": // a value that is not looked at, with its type
		into = append(into, new(string))
	case "skipped", "deep":
	default:
		return nil, fmt.Errorf("unknown result %q of the evaluator", r.kind)
	}
	if len(fields) != len(into) {
		return nil, fmt.Errorf("result %q of the evaluator has %d fields", r.kind, len(fields))
	}
	for i, p := range into {
		if err := json.Unmarshal(fields[i], p); err != nil {
			return nil, err
		}
	}
	return r, nil
}

const (
	misplacedEffect = "error: this derivation is an effect (isEffect = true), but effects are only allowed below the effects attribute"
	buildException  = "BuildException"
	otherException  = "SomeException"
)

// events of an attribute. attrs reads a derivation.
func (r *result) events(path []string, attrs func(drv string) (lookup, error)) []agentapi.EvaluateEvent {
	p := agentapi.List[string](path)
	one := func(e agentapi.EvaluateEvent) []agentapi.EvaluateEvent { return []agentapi.EvaluateEvent{e} }
	isDrv := r.kind == "drv" || r.kind == "effect" || r.kind == "misplaced"
	if isDrv && !isDerivationPath(r.drv) {
		return one(attributeError(path, fmt.Sprintf("error: drvPath is %q, which is not the path of a derivation", r.drv), "", "", ""))
	}
	switch r.kind {
	case "drv":
		return one(agentapi.EvaluateEvent{Attribute: &agentapi.AttributeEvent{ExpressionPath: p, DerivationPath: r.drv, Typ: r.typ}})
	case "misplaced":
		return one(attributeError(path, misplacedEffect, "", "", ""))
	case "effect":
		get, err := attrs(r.drv)
		if err != nil {
			return one(attributeError(path, "error: the derivation of this effect could not be read", "", r.drv, ""))
		}
		secrets, err := secretsToUse(get)
		if err != nil {
			return one(attributeError(path, "error: "+err.Error(), "", r.drv, ""))
		}
		return one(agentapi.EvaluateEvent{AttributeEffect: &agentapi.AttributeEffectEvent{ExpressionPath: p, DerivationPath: r.drv, SecretsToUse: secrets}})
	case "deep":
		return one(message("Max recursion depth reached in path " + showPath(path)))
	}
	return nil
}

func message(text string) agentapi.EvaluateEvent {
	return agentapi.EvaluateEvent{Message: &agentapi.Message{Typ: agentapi.ErrorMessage, Message: text}}
}

// attributeError makes an error event; empty texts are left out.
func attributeError(path []string, msg, trace, drv, typ string) agentapi.EvaluateEvent {
	if typ == "" {
		typ = otherException
	}
	opt := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	return agentapi.EvaluateEvent{AttributeError: &agentapi.AttributeErrorEvent{
		ExpressionPath: path, ErrorMessage: msg, Trace: opt(trace), ErrorDerivation: opt(drv), ErrorType: opt(typ),
	}}
}

func isDerivationPath(s string) bool {
	base, ok := strings.CutPrefix(s, "/nix/store/")
	return ok && !strings.Contains(base, "/") && len(base) > 33+len(".drv") && base[32] == '-' && strings.HasSuffix(base, ".drv")
}

// showPath writes an attribute path as people write it in Nix.
func showPath(path []string) string {
	parts := make([]string, len(path))
	for i, name := range path {
		parts[i] = name
		if name == "" || strings.IndexFunc(name, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-' && r != '\''
		}) >= 0 || name[0] >= '0' && name[0] <= '9' {
			parts[i] = quoteName(name)
		}
	}
	return strings.Join(parts, ".")
}

func quoteName(name string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "${", `\${`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(name) + `"`
}

// crashText says for people how an evaluator ended.
func crashText(err *evaluator.CrashError) string {
	switch {
	case err.StackOverflow():
		return "error: stack overflow (possible infinite recursion)"
	case err.Reason != nil:
		return "error: " + err.Reason.Error()
	case strings.Contains(err.State, "killed"):
		return "error: the evaluator was killed (" + err.State + "), perhaps because the machine is out of memory"
	}
	return "error: " + err.Error()
}
