package daemon

import (
	"fmt"
	"slices"
)

// Numbers of the protocol (worker-protocol.hh).
const (
	magicClient = 0x6e697863
	magicServer = 0x6478696f

	msgNext          = 0x6f6c6d67
	msgRead          = 0x64617461
	msgWrite         = 0x64617416
	msgLast          = 0x616c7473
	msgError         = 0x63787470
	msgStartActivity = 0x53545254
	msgStopActivity  = 0x53544f50
	msgResult        = 0x52534c54
)

// Versions are major*256+minor. 1.38 is the last: since then there are features instead (Nix 2.24 to 2.35 and later).
const (
	versionMin    = 1<<8 | 32 // Nix 2.4
	versionNix    = 1<<8 | 33 // the daemon tells its Nix version
	versionResult = 1<<8 | 34 // BuildPathsWithResults
	versionTrust  = 1<<8 | 35 // the daemon tells whether it trusts the client
	versionCPU    = 1<<8 | 37 // build results tell CPU times
	versionMax    = 1<<8 | 38 // features
)

// Features that change the form of messages.
const (
	// Realisations are named by derivation path and output and are not JSON (Nix 2.35).
	featureRealisation = "realisation-with-path-not-hash"
	// CollectGarbage tells the whole store from a set of paths (Nix 2.35).
	featureGCReferrers = "delete-dead-specific-referrers"
)

var knownFeatures = []string{featureGCReferrers, featureRealisation}

// proto is what two sides agreed on.
type proto struct {
	version  uint64
	features []string
}

func (p proto) has(feature string) bool { return slices.Contains(p.features, feature) }

// intersect returns the elements of a that are in b too.
func intersect(a, b []string) []string {
	var both []string
	for _, s := range a {
		if slices.Contains(b, s) && !slices.Contains(both, s) {
			both = append(both, s)
		}
	}
	return both
}

// op is the number of an operation.
type op uint64

const (
	opIsValidPath                 op = 1
	opQueryReferrers              op = 6
	opAddToStore                  op = 7
	opAddTextToStore              op = 8
	opBuildPaths                  op = 9
	opEnsurePath                  op = 10
	opAddTempRoot                 op = 11
	opAddIndirectRoot             op = 12
	opSyncWithGC                  op = 13
	opFindRoots                   op = 14
	opExportPath                  op = 16
	opQueryDeriver                op = 18
	opSetOptions                  op = 19
	opCollectGarbage              op = 20
	opQuerySubstitutablePathInfo  op = 21
	opQueryDerivationOutputs      op = 22
	opQueryAllValidPaths          op = 23
	opQueryPathInfo               op = 26
	opImportPaths                 op = 27
	opQueryDerivationOutputNames  op = 28
	opQueryPathFromHashPart       op = 29
	opQuerySubstitutablePathInfos op = 30
	opQueryValidPaths             op = 31
	opQuerySubstitutablePaths     op = 32
	opQueryValidDerivers          op = 33
	opOptimiseStore               op = 34
	opVerifyStore                 op = 35
	opBuildDerivation             op = 36
	opAddSignatures               op = 37
	opNarFromPath                 op = 38
	opAddToStoreNar               op = 39
	opQueryMissing                op = 40
	opQueryDerivationOutputMap    op = 41
	opRegisterDrvOutput           op = 42
	opQueryRealisation            op = 43
	opAddMultipleToStore          op = 44
	opAddBuildLog                 op = 45
	opBuildPathsWithResults       op = 46
	opAddPermRoot                 op = 47
)

func (o op) String() string {
	if f, ok := forms[o]; ok {
		return f.name
	}
	return fmt.Sprintf("operation %d", uint64(o))
}
