// Package daemon speaks the Nix worker protocol, as a client and as a proxy that sits between a Nix client and a
// Nix daemon.
//
// It knows store paths, derivations and NARs, and nothing of continuous integration.
package daemon

import "time"

// Endpoint says how a daemon is reached: through Socket, or, when that is empty, by starting Command and
// speaking over its standard input and output (nix-daemon --stdio, or ssh HOST nix-daemon --stdio).
type Endpoint struct {
	Socket  string
	Command []string
	// Env is the environment of Command; nil means the process's own.
	Env []string
	// Root is where the store directory of this daemon is mounted in this machine's file system: the contents of
	// the store path P are at Root+P. Empty for the ordinary store.
	Root string
}

// Event is a message of Nix's structured logger.
type Event struct {
	Kind  EventKind
	Level Verbosity // Message, Start
	Text  string    // Message, Start
	// ID of the activity (Start, Stop, Result); Parent of Start, 0 for none.
	ID, Parent uint64
	// Type is the activity type of Start and the result type of Result.
	Type   uint64
	Fields []Field
}

// EventKind tells the kinds of event apart.
type EventKind uint8

// The kinds of event.
const (
	EventMessage EventKind = iota + 1
	EventStart
	EventStop
	EventResult
)

// Field of an activity or result: a number or a text.
type Field struct {
	IsText bool
	Int    uint64
	Text   string
}

// Verbosity is Nix's log level; smaller is more important.
type Verbosity int

// Nix's log levels.
const (
	Error Verbosity = iota
	Warn
	Notice
	Info
	Talkative
	Chatty
	Debug
	Vomit
)

// Activity types of Nix's logger (logging.hh).
const (
	ActUnknown       = 0
	ActCopyPath      = 100
	ActFileTransfer  = 101
	ActRealise       = 102
	ActCopyPaths     = 103
	ActBuilds        = 104
	ActBuild         = 105
	ActSubstitute    = 108
	ActQueryPathInfo = 109
	ActBuildWaiting  = 111
	ActFetchTree     = 112
)

// Result types of Nix's logger (logging.hh).
const (
	ResBuildLogLine     = 101
	ResSetPhase         = 104
	ResProgress         = 105
	ResSetExpected      = 106
	ResPostBuildLogLine = 107
)

// PathInfo is what a store knows of a path.
type PathInfo struct {
	Path       string
	Deriver    string // a store path, or empty
	NarHash    []byte // sha256, 32 bytes
	NarSize    uint64 // bytes
	References []string
	// RegistrationTime in seconds since the epoch.
	RegistrationTime uint64
	Ultimate         bool
	Signatures       []string
	ContentAddress   string // "fixed:r:sha256:…", "text:sha256:…", or empty
}

// SubstitutablePathInfo is what substituters know of a path.
type SubstitutablePathInfo struct {
	Path         string
	Deriver      string
	References   []string
	DownloadSize uint64
	NarSize      uint64
}

// DerivedPath is something to be realised: a store path, or outputs of a derivation.
type DerivedPath struct {
	Path string
	// Outputs of the derivation at Path; nil means Path itself, ["*"] all outputs.
	Outputs []string
}

// BuildMode of a build.
type BuildMode uint64

// The build modes.
const (
	BuildNormal BuildMode = iota
	BuildRepair
	BuildCheck
)

// BuildStatus is how a build ended (build-result.hh).
type BuildStatus uint64

// The build statuses.
const (
	Built BuildStatus = iota
	Substituted
	AlreadyValid
	PermanentFailure
	InputRejected
	OutputRejected
	TransientFailure
	CachedFailure
	TimedOut
	MiscFailure
	DependencyFailed
	LogLimitExceeded
	NotDeterministic
	ResolvesToAlreadyValid
	NoSubstituters
)

// BuildResult is how a build ended.
type BuildResult struct {
	Path       DerivedPath // with BuildPathsWithResults
	Status     BuildStatus
	ErrorMsg   string
	TimesBuilt uint64
	// NonDeterministic: repeated builds gave different results.
	NonDeterministic bool
	// Start and stop in seconds since the epoch; 0 when nothing was built.
	StartTime, StopTime uint64
	// CPU times of the builder; 0 when not known.
	CPUUser, CPUSystem time.Duration
	// Outputs maps output names to store paths, as far as known.
	Outputs map[string]string
}

// Missing is the answer of QueryMissing.
type Missing struct {
	WillBuild, WillSubstitute, Unknown []string
	DownloadSize, NarSize              uint64
}

// BasicDerivation is a derivation whose inputs are store paths only, as BuildDerivation takes it.
type BasicDerivation struct {
	Outputs  map[string]DerivationOutput
	Inputs   []string
	Platform string
	Builder  string
	Args     []string
	Env      map[string]string
}

// DerivationOutput is an output as the ATerm form has it: path, hash algorithm ("r:sha256"), hash.
type DerivationOutput struct {
	Path, HashAlgo, Hash string
}

// Trust is whether a daemon lets its client do what only trusted users may.
type Trust uint8

// The degrees of trust. Daemons before Nix 2.15 do not tell.
const (
	TrustUnknown Trust = iota
	Trusted
	NotTrusted
)

// AddOptions of the operations that add paths. Both are for trusted users.
type AddOptions struct {
	// Repair replaces the path when it is there already.
	Repair bool
	// DontCheckSignatures accepts a path that no trusted key has signed.
	DontCheckSignatures bool
}
