package nixconf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// setting is a member of the JSON of nix config show.
type setting struct {
	Value   json.RawMessage `json:"value"`
	Default json.RawMessage `json:"defaultValue"`
	Aliases []string        `json:"aliases"`
}

// is tells whether the setting is there and has this value.
func (s setting) is(text string) bool {
	own, err := s.text()
	return err == nil && s.Value != nil && own == text
}

// isDefault tells whether a value is the compiled default.
func (s setting) isDefault(text string) bool { return setting{Value: s.Default}.is(text) }

// text gives the value in the form of nix.conf.
func (s setting) text() (string, error) {
	if len(s.Value) == 0 {
		return "", nil
	}
	d := json.NewDecoder(bytes.NewReader(s.Value))
	d.UseNumber() // sizes go beyond what float64 has exactly
	var v any
	if err := d.Decode(&v); err != nil {
		return "", err
	}
	return valueText(v)
}

func valueText(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case bool:
		return fmt.Sprint(v), nil
	case json.Number:
		return v.String(), nil
	case string:
		return v, nil
	case []any:
		words := make([]string, len(v))
		for i, e := range v {
			var err error
			if words[i], err = valueText(e); err != nil {
				return "", err
			}
		}
		return strings.Join(words, " "), nil
	case map[string]any:
		words := make([]string, 0, len(v))
		for _, key := range slices.Sorted(maps.Keys(v)) {
			value, err := memberText(v[key])
			if err != nil {
				return "", err
			}
			words = append(words, key+"="+value)
		}
		return strings.Join(words, " "), nil
	}
	return "", fmt.Errorf("unexpected %T", v)
}

// memberText is a value of a map. The paths of the sandbox are objects since Nix 2.32.
func memberText(v any) (string, error) {
	object, ok := v.(map[string]any)
	if !ok {
		return valueText(v)
	}
	source, ok := object["source"].(string)
	if !ok {
		b, err := json.Marshal(v)
		return string(b), err
	}
	if optional, _ := object["optional"].(bool); optional {
		source += "?"
	}
	return source, nil
}

// forwarded tells whether a setting is one of the store and its builds, which a client sends to the daemon. Not
// those of the evaluator, of fetchers and flakes, and of the program itself (Nix keeps these in groups that it does
// not send), nor those that say who may use the daemon or which store it is.
func forwarded(name string) bool {
	for _, prefix := range []string{"bash-prompt", "debugger-", "eval-", "lint-", "nix-shell-", "trace-", "warn-"} {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	return !slices.Contains(ofClient, name)
}

var ofClient = []string{
	"abort-on-warn", "accept-flake-config", "access-tokens", "allow-dirty", "allow-dirty-locks",
	"allow-import-from-derivation", "allow-unsafe-native-code-during-evaluation", "allowed-uris", "allowed-users",
	"build-users-group", "commit-lock-file-summary", "commit-lockfile-summary", "experimental-features",
	"flake-registry", "ignore-try", "json-log-path", "max-call-depth", "nix-path", "plugin-files", "print-missing",
	"pure-eval", "restrict-eval", "show-trace", "store", "tarball-ttl", "trust-tarballs-from-git-forges",
	"trusted-users", "upgrade-nix-store-path-url", "use-registries", "use-xdg-base-directories",
}
