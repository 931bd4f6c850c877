package traverse

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"hercules/internal/wire/agentapi"
)

// secretsToUse reads the declaration of an effect's secrets (agent-behaviour 6.5).
func secretsToUse(get lookup) (agentapi.Map[string, agentapi.SecretRef], error) {
	refs := agentapi.Map[string, agentapi.SecretRef]{}
	name := "secretsToUse"
	text, ok := get(name)
	if !ok {
		name = "secretsMap"
		if text, ok = get(name); !ok {
			return refs, nil
		}
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &fields); err != nil || fields == nil {
		return nil, fmt.Errorf("the attribute %s of this effect must be a set of secret names", name)
	}
	for _, dest := range slices.Sorted(maps.Keys(fields)) {
		ref, err := secretRef(fields[dest])
		if err != nil {
			return nil, fmt.Errorf("the attribute %s of this effect: field %q: %w", name, dest, err)
		}
		refs[dest] = ref
	}
	return refs, nil
}

func secretRef(raw json.RawMessage) (agentapi.SecretRef, error) {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return agentapi.SecretRef{}, err
	}
	switch v := v.(type) {
	case string:
		return agentapi.SecretRef{SimpleSecret: &agentapi.SimpleSecret{Name: v}}, nil
	case map[string]any:
		typ, ok := v["type"].(string)
		if !ok {
			return agentapi.SecretRef{}, errors.New(`a set must have type = "GitToken"`)
		}
		if typ != "GitToken" {
			return agentapi.SecretRef{}, fmt.Errorf("unknown type of secret %q; GitToken is known", typ)
		}
		return agentapi.SecretRef{GitToken: &agentapi.EmptyRecord{}}, nil
	}
	return agentapi.SecretRef{}, errors.New(`expecting the name of a secret, or { type = "GitToken"; }`)
}
