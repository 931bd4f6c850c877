// Package agentapi holds every document of the agent protocol: what agent and coordinator say to each other
// over HTTP and over the two websockets, as Go types that encode to and decode from exactly the JSON the
// protocol asks for.
//
// It must not know how documents travel (packages socket and agentclient do) nor what they cause.
//
// Conventions of the encoding (protocol specification, section 0; package codec does it):
//
//   - A sum type is a struct of pointers of which exactly one is set; the field's name is the tag. Encoding
//     a value with none or several set is an error.
//   - Lists and maps are [List] and [Map], which never encode as null.
//   - An optional value is a pointer and encodes as null when nil.
//   - What is missing, null where it must not be, of a wrong type or not a known tag is an error when read.
//
// Use [Marshal] and [Unmarshal]. encoding/json writes the same documents, but reads records less strictly.
package agentapi

import (
	"encoding/json"
	"time"

	"hercules/internal/wire/codec"
)

// ID is a UUID in lower case with hyphens.
type ID string

// ServiceInfo is the body of GET agent/service-info and the coordinator's greeting on both sockets.
type ServiceInfo struct {
	Version            Version `json:"version"`
	AgentSocketBaseURL string  `json:"agentSocketBaseURL"`
	BulkSocketBaseURL  string  `json:"bulkSocketBaseURL"`
}

// Version is a protocol version, compared major number first. It encodes as a pair.
type Version [2]int64

// CreateAgentSession is the body of POST agent/session.
type CreateAgentSession struct {
	AgentInfo AgentInfo `json:"agentInfo"`
}

// AgentInfo describes an agent to the coordinator.
type AgentInfo struct {
	Hostname                 string                       `json:"hostname"`
	AgentVersion             string                       `json:"agentVersion"`
	NixVersion               string                       `json:"nixVersion"`
	NixClientProtocolVersion int64                        `json:"nixClientProtocolVersion" default:"0"`
	NixDaemonProtocolVersion int64                        `json:"nixDaemonProtocolVersion" default:"0"`
	Platforms                List[string]                 `json:"platforms"`
	SystemFeatures           List[string]                 `json:"systemFeatures"`
	CachixPushCaches         List[string]                 `json:"cachixPushCaches"`
	PushCaches               List[string]                 `json:"pushCaches" default:"[]"`
	Substituters             List[string]                 `json:"substituters"`
	ConcurrentTasks          int64                        `json:"concurrentTasks" default:"2"`
	Labels                   Map[string, json.RawMessage] `json:"labels" default:"{}"`
}

// StartInfo identifies one run of an agent process.
type StartInfo struct {
	ID        ID        `json:"id"`
	StartTime time.Time `json:"startTime"`
}

// Hello is what the agent says first on the agent socket.
type Hello struct {
	AgentInfo       AgentInfo `json:"agentInfo"`
	StartInfo       StartInfo `json:"startInfo"`
	TasksInProgress List[ID]  `json:"tasksInProgress" default:"[]"`
}

// AgentPayload is what an agent sends over the agent socket.
type AgentPayload struct {
	Hello     *Hello
	Ping      *Unit
	Started   *TaskRef
	Cancelled *TaskRef
}

// ServicePayload is what a coordinator sends over the agent socket.
type ServicePayload struct {
	ServiceInfo     *ServiceInfo
	StartEvaluation *EvaluateTask
	StartBuild      *BuildTask
	StartEffect     *EffectTask
	Cancel          *TaskRef
}

// TaskRef names a task.
type TaskRef struct {
	TaskID ID `json:"taskId"`
}

// Unit is a constructor without data.
type Unit = codec.Unit

// TaskStatus is the body of POST tasks/:taskId, the final word on a task.
type TaskStatus struct {
	Successful *Unit `sum:",unit"`

	Terminated *Unit `sum:",unit"`

	Exceptional *string
}

// EvaluateTask asks for an evaluation.
type EvaluateTask struct {
	ID ID `json:"id"`

	PrimaryInput string `json:"primaryInput"`

	OtherInputs   Map[string, string]                       `json:"otherInputs"`
	InputMetadata Map[string, Map[string, json.RawMessage]] `json:"inputMetadata"`
	Inputs        Map[string, ImmutableInput]               `json:"inputs"`
	AutoArguments Map[string, SubPathOf]                    `json:"autoArguments"`
	NixPath       List[NixPathElement]                      `json:"nixPath"`
	LogToken      string                                    `json:"logToken"`
	Selector      Selector                                  `json:"selector"`

	CISystems           *Map[string, UnitValue] `json:"ciSystems"`
	ExtraGitCredentials *List[Credential]       `json:"extraGitCredentials"`
	IsFlakeJob          bool                    `json:"isFlakeJob"`
}

// UnitValue encodes as [] and decodes from anything.
type UnitValue struct{}

// SubPathOf is an input, or a path in it.
type SubPathOf struct {
	Path    string  `json:"path"`
	SubPath *string `json:"subPath"`
}

// NixPathElement is an entry of NIX_PATH.
type NixPathElement struct {
	Prefix *string   `json:"prefix"`
	Value  SubPathOf `json:"value"`
}

// Credential is a line of a netrc file.
type Credential struct {
	URL      string `json:"url"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// Selector says what an evaluation is for.
type Selector struct {
	ConfigOrLegacy *Unit
	OnPush         *OnPush
	OnSchedule     *OnSchedule
}

// OnPush selects herculesCI.onPush.<Name>.
type OnPush struct {
	Name   string                      `json:"name"`
	Inputs Map[string, ImmutableInput] `json:"inputs"`
}

// OnSchedule selects herculesCI.onSchedule.<Name>.
type OnSchedule struct {
	Name        string                      `json:"name"`
	ExtraInputs Map[string, ImmutableInput] `json:"extraInputs"`
}

// ImmutableInput is a source that does not change.
type ImmutableInput struct {
	ArchiveURL *string `sum:"ArchiveUrl"`
	Git        *ImmutableGitInput
}

// ImmutableGitInput is a commit.
type ImmutableGitInput struct {
	Rev       string  `json:"rev"`
	Ref       string  `json:"ref"`
	SSHURL    string  `json:"sshURL"`
	HTTPURL   string  `json:"httpURL"`
	WebURL    *string `json:"webURL"`
	ForgeType *string `json:"forgeType"`
	Owner     *string `json:"owner"`
	Name      *string `json:"name"`
}

// EvaluateEvent is a result of an evaluation. Each kind is idempotent under the key that its comment names.
type EvaluateEvent struct {
	Attribute               *AttributeEvent
	AttributeEffect         *AttributeEffectEvent
	AttributeError          *AttributeErrorEvent
	AttributeIFD            *AttributeIFDEvent
	Message                 *Message
	DerivationInfo          *DerivationInfo
	BuildRequired           *BuildRequired
	BuildRequest            *BuildRequest
	SubstitutionQueryResult *SubstitutionQueryResult
	JobConfig               *JobConfig
	OnPushHandlerEvent      *OnPushHandlerEvent
	OnScheduleHandlerEvent  *OnScheduleHandlerEvent
	PushedAll               *PushedAll
}

// AttributeType says how the result of an attribute's build counts.
type AttributeType string

// The attribute types of the protocol.
const (
	Regular          AttributeType = "Regular"
	MustFail         AttributeType = "MustFail"
	MayFail          AttributeType = "MayFail"
	DependenciesOnly AttributeType = "DependenciesOnly"
	EffectType       AttributeType = "Effect" // decodable; effects are sent as AttributeEffect
)

// AttributeEvent reports a derivation.
type AttributeEvent struct {
	ExpressionPath List[string]  `json:"expressionPath"`
	DerivationPath string        `json:"derivationPath"`
	Typ            AttributeType `json:"typ" default:"\"Regular\""`
}

// AttributeEffectEvent reports an effect.
type AttributeEffectEvent struct {
	ExpressionPath List[string]           `json:"expressionPath"`
	DerivationPath string                 `json:"derivationPath"`
	SecretsToUse   Map[string, SecretRef] `json:"secretsToUse"`
}

// SecretRef names a secret of an effect.
type SecretRef struct {
	SimpleSecret *SimpleSecret
	GitToken     *EmptyRecord
}

// SimpleSecret is an entry of the agent's secrets.json.
type SimpleSecret struct {
	Name string `json:"name"`
}

// EmptyRecord encodes as [] and decodes from nothing else.
type EmptyRecord struct{}

// AttributeErrorEvent reports that an attribute could not be evaluated. Its empty optional keys are left out.
type AttributeErrorEvent struct {
	ExpressionPath  List[string] `json:"expressionPath"`
	ErrorMessage    string       `json:"errorMessage"`
	ErrorDerivation *string      `json:"errorDerivation,omitempty"`
	ErrorType       *string      `json:"errorType,omitempty"`
	Trace           *string      `json:"trace,omitempty"`
}

// AttributeIFDEvent reports that an attribute waits, or waits no longer, for an import from derivation.
type AttributeIFDEvent struct {
	ExpressionPath   List[string] `json:"expressionPath"`
	DerivationPath   string       `json:"derivationPath"`
	DerivationOutput string       `json:"derivationOutput"`
	Done             bool         `json:"done"`
	Index            int64        `json:"index"`
}

// MessageType is Error or Trace.
type MessageType string

// The message types of the protocol.
const (
	ErrorMessage MessageType = "Error"
	TraceMessage MessageType = "Trace"
)

// Message is for people and concerns the whole evaluation.
type Message struct {
	Index   int64       `json:"index"`
	Typ     MessageType `json:"typ"`
	Message string      `json:"message"`
}

// DerivationInfo is what the coordinator needs to know of a derivation to plan its build.
type DerivationInfo struct {
	DerivationPath         string                            `json:"derivationPath"`
	Platform               string                            `json:"platform"`
	RequiredSystemFeatures List[string]                      `json:"requiredSystemFeatures" default:"[]"`
	InputDerivations       Map[string, List[string]]         `json:"inputDerivations"`
	InputSources           List[string]                      `json:"inputSources"`
	Outputs                Map[string, DerivationInfoOutput] `json:"outputs"`
}

// DerivationInfoOutput is an output of a derivation; Path is nil when it is not known before the build.
type DerivationInfoOutput struct {
	Path    *string `json:"path"`
	IsFixed bool    `json:"isFixed"`
}

// BuildRequired says that evaluation needs the contents of an output.
type BuildRequired struct {
	Index          int64  `json:"index"`
	DerivationPath string `json:"derivationPath"`
	OutputName     string `json:"outputName"`
}

// BuildRequest asks for a build; with ForceRebuild for a new attempt although there is a result.
type BuildRequest struct {
	DerivationPath string `json:"derivationPath"`
	ForceRebuild   bool   `json:"forceRebuild" default:"false"`
}

// SubstitutionQueryResult is what one cache answered about one output; nil OutputInfo means it has it not.
type SubstitutionQueryResult struct {
	StoreURI   string      `json:"storeURI"`
	Derivation string      `json:"derivation"`
	OutputName string      `json:"outputName"`
	OutputInfo *OutputInfo `json:"outputInfo"`
}

// JobConfig says that the project has a herculesCI attribute.
type JobConfig struct {
	SourceCaches *List[string] `json:"sourceCaches"`
	BinaryCaches *List[string] `json:"binaryCaches"`
}

// InputDeclaration says where an extra input comes from.
type InputDeclaration struct {
	SiblingInput *SiblingInput
	BogusInput   *string
}

// SiblingInput is another project of the same owner.
type SiblingInput struct {
	Project string  `json:"project"`
	Ref     *string `json:"ref"`
}

// OnPushHandlerEvent declares the job herculesCI.onPush.<HandlerName>.
type OnPushHandlerEvent struct {
	HandlerName        string                        `json:"handlerName"`
	HandlerExtraInputs Map[string, InputDeclaration] `json:"handlerExtraInputs"`
	IsFlake            bool                          `json:"isFlake" default:"false"`
}

// OnScheduleHandlerEvent declares the job herculesCI.onSchedule.<HandlerName>.
type OnScheduleHandlerEvent struct {
	HandlerName        string                        `json:"handlerName"`
	HandlerExtraInputs Map[string, InputDeclaration] `json:"handlerExtraInputs"`
	IsFlake            bool                          `json:"isFlake"`
	When               TimeConstraints               `json:"when"`
}

// TimeConstraints are in UTC and must all hold; nil leaves the choice to the coordinator.
type TimeConstraints struct {
	Minute     *int64           `json:"minute"`
	Hour       *List[int64]     `json:"hour"`
	DayOfWeek  *List[DayOfWeek] `json:"dayOfWeek"`
	DayOfMonth *List[int64]     `json:"dayOfMonth"`
}

// DayOfWeek is Mon, Tue, Wed, Thu, Fri, Sat or Sun.
type DayOfWeek string

// PushedAll says that a cache has everything.
type PushedAll struct {
	Cache string `json:"cache"`
}

// BuildTask asks for a build.
type BuildTask struct {
	ID             ID     `json:"id"`
	DerivationPath string `json:"derivationPath"`
	LogToken       string `json:"logToken"`

	InputDerivationOutputPaths List[string] `json:"inputDerivationOutputPaths"`
}

// BuildEvent is a result of a build.
type BuildEvent struct {
	OutputInfo *OutputInfo
	Pushed     *Pushed
	Done       *bool
}

// OutputInfo describes an output that exists.
type OutputInfo struct {
	Deriver string `json:"deriver"`
	Name    string `json:"name"`
	Path    string `json:"path"`

	Hash string `json:"hash"`

	Size int64 `json:"size"`

	References *List[string] `json:"references"`
}

// Pushed says that all outputs are in the cache.
type Pushed struct {
	Cache string `json:"cache"`
}

// EffectTask asks for an effect to be run.
type EffectTask struct {
	ID                         ID                                        `json:"id"`
	DerivationPath             string                                    `json:"derivationPath"`
	LogToken                   string                                    `json:"logToken"`
	InputDerivationOutputPaths List[string]                              `json:"inputDerivationOutputPaths"`
	Token                      string                                    `json:"token"`
	ServerSecrets              Map[string, Map[string, json.RawMessage]] `json:"serverSecrets" default:"{}"`
	ProjectID                  ID                                        `json:"projectId"`
	ProjectPath                string                                    `json:"projectPath"`
	SiteName                   string                                    `json:"siteName"`
	OwnerName                  string                                    `json:"ownerName"`
	RepoName                   string                                    `json:"repoName"`
	Ref                        string                                    `json:"ref"`
	IsDefaultBranch            bool                                      `json:"isDefaultBranch"`
}

// DerivationStatus is the state of an attempt to build a derivation.
type DerivationStatus string

// The derivation statuses of the protocol.
const (
	Waiting           DerivationStatus = "Waiting"
	Building          DerivationStatus = "Building"
	BuildFailure      DerivationStatus = "BuildFailure"
	DependencyFailure DerivationStatus = "DependencyFailure"
	BuildSuccess      DerivationStatus = "BuildSuccess"
)

// EvalBuild is the result of GET agent/eval-build/:drv, a pair; the endpoint answers null for "not planned".
type EvalBuild struct {
	Attempt ID
	Status  DerivationStatus
}

// LogHello is the agent's greeting on a log socket: worker protocol versions of daemon and client.
type LogHello struct {
	StoreProtocolVersion  int64 `json:"storeProtocolVersion"`
	ClientProtocolVersion int64 `json:"clientProtocolVersion"`
}

// LogMessage is what an agent sends over a log socket.
type LogMessage struct {
	Hello      *LogHello
	LogEntries *List[LogEntry]
	End        *LogEnd `sum:",inline"`
}

// LogEnd closes a log: I is the number of entries, MS the time of the last.
type LogEnd struct {
	I  uint64 `json:"i"`
	MS uint64 `json:"ms"`
}

// LogEntry is one entry of a log. The kinds mirror Nix's structured logger.
type LogEntry struct {
	Kind LogKind

	I, MS uint64

	Level int64

	Text string

	Act, Parent uint64

	Type uint64

	Fields []LogField
}

// LogKind is the tag of a log entry.
type LogKind uint8

// The kinds of log entry.
const (
	LogMsg LogKind = iota + 1
	LogStart
	LogStop
	LogResult
)

// LogField is a number or a text.
type LogField struct {
	IsText bool
	Int    uint64
	Text   string
}
