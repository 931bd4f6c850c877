// Code generated from modules/schema/agent.nix by go generate; DO NOT EDIT.

package config

import (
	"encoding/json"
	"time"
)

// Config is the configuration of hercules-ci-agent. Load gives one with all defaults filled in.
type Config struct {
	// The service: Where the agent gets its work.

	// The base URL of the service that hands out tasks. Default: $HERCULES_CI_API_BASE_URL, else $HERCULES_API_BASE_URL,
	// else "https://hercules-ci.com".
	APIBaseURL string `json:"apiBaseUrl"`
	// Facts about this agent that are shown by the service. Any structure; `null` is kept (JSON only, TOML has none).
	// Default: {}.
	Labels map[string]json.RawMessage `json:"labels"`
	// How many tasks run at the same time. The service is told, and the agent holds back what goes beyond it. `"auto"`
	// is the number of CPUs, and at least 2. Default: "auto".
	ConcurrentTasks Count `json:"concurrentTasks"`
	// How long running tasks may go on after the agent was asked to stop (SIGTERM). It takes no new tasks in that time;
	// what is not done at its end is handed back to the service. A second signal ends the wait. The stop time limit of
	// the service manager has to be longer. Default: 60.
	DrainTimeoutSeconds int `json:"drainTimeoutSeconds"`

	// Files and directories: Where the agent keeps its state and finds its secrets.

	// The root of the agent's state. The session key is kept in `secretState` below it. Required.
	BaseDirectory string `json:"baseDirectory"`
	// Temporary files of tasks: sources, netrc files, sandboxes. Made at start; what a killed agent left there is
	// removed at start. Default: work below baseDirectory.
	WorkDirectory string `json:"workDirectory"`
	// Where the files of the next three settings are, unless they say otherwise. The agent writes nothing here. Default:
	// secrets below baseDirectory.
	StaticSecretsDirectory string `json:"staticSecretsDirectory"`
	// The file with the token that lets this agent join its cluster. Default: cluster-join-token.key below
	// staticSecretsDirectory.
	ClusterJoinTokenPath string `json:"clusterJoinTokenPath"`
	// The file that names the binary caches to pull from and push to, with their keys (docs/binary-caches.md). It has to
	// exist; `{}` is enough for a single agent. It is read again when it changes; tasks that run keep what they started
	// with. Default: binary-caches.json below staticSecretsDirectory.
	BinaryCachesPath string `json:"binaryCachesPath"`
	// The file with the secrets of effects. It is read anew for each effect that asks for one. Default: secrets.json
	// below staticSecretsDirectory.
	SecretsJSONPath string `json:"secretsJsonPath"`

	// Evaluation: How Nix expressions are evaluated.

	// How many Nix evaluators of one task work at the same time. Default: the number of CPUs.
	EvaluationWorkers int `json:"evaluationWorkers"`
	// How much memory one evaluator may use. Above it, the evaluator is replaced before the next attribute; an attribute
	// that needs more alone gets an error that says so. Default: three quarters of the machine's memory, divided by the
	// number of evaluators, but at least 2048 where the machine has that much.
	EvaluationMemoryMiB int `json:"evaluationMemoryMiB"`
	// How long the evaluation of one attribute may take, without the time that it waits for builds. An attribute that
	// takes longer gets an error. Default: no limit.
	AttributeTimeoutSeconds int `json:"attributeTimeoutSeconds"`
	// How long the evaluation of a whole job may take, with the time that it waits for builds. Default: no limit.
	EvaluationTimeoutSeconds int `json:"evaluationTimeoutSeconds"`
	// Whether expressions may fetch from `http://` and `git://`, which anyone on the way can change. Default: false.
	AllowInsecureBuiltinFetchers bool `json:"allowInsecureBuiltinFetchers"`

	// Nix: How the agent uses the Nix of its machine.

	// Nix settings that go before those of `nix.conf`, for everything that the agent does. All values are text. They
	// have no order, so set either `x` or `extra-x`. Default: {}.
	NixSettings map[string]string `json:"nixSettings"`
	// Says that the agent's user is one of the `trusted-users` of Nix. Then builds need less of their closure to be at
	// hand, and the binary caches are used for substitution. Default: false.
	NixUserIsTrusted bool `json:"nixUserIsTrusted"`
	// Platforms to offer besides those of this machine, because its Nix has remote builders for them with the same
	// system features. Default: none.
	RemotePlatformsWithSameFeatures []string `json:"remotePlatformsWithSameFeatures"`

	// Effects: What effects may use.

	// Files, directories and devices of this machine that effects may mount, by the name that they ask for. Default: {}.
	EffectMountables map[string]Mountable `json:"effectMountables"`

	// Logs: How much the agent says on standard error.

	// The least severe messages that the agent logs. Under systemd they have the priority of the journal. Default:
	// "InfoS".
	LogLevel string `json:"logLevel"`
	// How much Nix says in the logs of tasks. It is never less than `Info`. Default: "Talkative".
	NixVerbosity string `json:"nixVerbosity"`
}

// Mountable is a value of the type mountable. Something of the agent's machine that effects may ask for.
type Mountable struct {
	// The file, directory or device on the agent's machine.
	Source string `json:"source"`
	// Whether effects can only read it.
	ReadOnly bool `json:"readOnly"`
	// Which jobs may mount it.
	Condition Condition `json:"condition"`
}

// DrainTimeout is the setting drainTimeoutSeconds as a duration.
func (c *Config) DrainTimeout() time.Duration {
	return time.Duration(c.DrainTimeoutSeconds) * time.Second
}

// EvaluationMemory is the setting evaluationMemoryMiB in bytes.
func (c *Config) EvaluationMemory() int64 { return int64(c.EvaluationMemoryMiB) << 20 }

// AttributeTimeout is the setting attributeTimeoutSeconds as a duration; 0 is no limit.
func (c *Config) AttributeTimeout() time.Duration {
	return time.Duration(c.AttributeTimeoutSeconds) * time.Second
}

// EvaluationTimeout is the setting evaluationTimeoutSeconds as a duration; 0 is no limit.
func (c *Config) EvaluationTimeout() time.Duration {
	return time.Duration(c.EvaluationTimeoutSeconds) * time.Second
}
