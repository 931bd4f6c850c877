package daemon

// A form describes what follows an operation's number, and what follows the end of its log, so that the proxy can pass
// messages on without understanding them:
//
//	u      number, also a truth value
//	s      byte string
//	l      list of byte strings
//	*{…}   number, and that many times what is in the braces
//	?{…}   number, and what is in the braces if it is not 0
//	!{…}   number, and what is in the braces if it is 0
//	n      NAR
//	f      frames; only at the end of a request
type form struct {
	name      string
	args, res string
	// slow: takes long enough that the client may lose patience and leave.
	slow bool
}

const (
	formInfo          = "sslu" + "uu" + "ls" // pathInfo: deriver, hash, references, times and size, ultimate, signatures, ca
	formPathInfo      = "s" + formInfo
	formDerivation    = "*{ssss}lssl*{ss}"
	formSubstitutable = "slu" + "u" // deriver, references, sizes
)

// forms of versionMin and newer, without features; see proto.form for the rest. From daemon.cc of Nix 2.4 to 2.35.
var forms = map[op]form{
	opIsValidPath:                 {"IsValidPath", "s", "u", false},
	opQueryReferrers:              {"QueryReferrers", "s", "l", false},
	opAddToStore:                  {"AddToStore", "sslu" + "f", formPathInfo, false},
	opAddTextToStore:              {"AddTextToStore", "ssl", "s", false},
	opBuildPaths:                  {"BuildPaths", "lu", "u", true},
	opEnsurePath:                  {"EnsurePath", "s", "u", true},
	opAddTempRoot:                 {"AddTempRoot", "s", "u", false},
	opAddIndirectRoot:             {"AddIndirectRoot", "s", "u", false},
	opSyncWithGC:                  {"SyncWithGC", "", "u", false},
	opFindRoots:                   {"FindRoots", "", "*{ss}", true},
	opExportPath:                  {"ExportPath", "su", "u", false},
	opQueryDeriver:                {"QueryDeriver", "s", "s", false},
	opSetOptions:                  {"SetOptions", "uuuuuuuuuuuu*{ss}", "", false},
	opCollectGarbage:              {"CollectGarbage", "ul" + "uuuuu", "luu", true},
	opQuerySubstitutablePathInfo:  {"QuerySubstitutablePathInfo", "s", "?{" + formSubstitutable + "}", true},
	opQueryDerivationOutputs:      {"QueryDerivationOutputs", "s", "l", false},
	opQueryAllValidPaths:          {"QueryAllValidPaths", "", "l", false},
	opQueryPathInfo:               {"QueryPathInfo", "s", "?{" + formInfo + "}", false},
	opImportPaths:                 {"ImportPaths", "", "l", false},
	opQueryDerivationOutputNames:  {"QueryDerivationOutputNames", "s", "l", false},
	opQueryPathFromHashPart:       {"QueryPathFromHashPart", "s", "s", false},
	opQuerySubstitutablePathInfos: {"QuerySubstitutablePathInfos", "*{ss}", "*{s" + formSubstitutable + "}", true},
	opQueryValidPaths:             {"QueryValidPaths", "lu", "l", true},
	opQuerySubstitutablePaths:     {"QuerySubstitutablePaths", "l", "l", true},
	opQueryValidDerivers:          {"QueryValidDerivers", "s", "l", false},
	opOptimiseStore:               {"OptimiseStore", "", "u", true},
	opVerifyStore:                 {"VerifyStore", "uu", "u", true},
	opBuildDerivation:             {"BuildDerivation", "s" + formDerivation + "u", "", true},
	opAddSignatures:               {"AddSignatures", "sl", "u", false},
	opNarFromPath:                 {"NarFromPath", "s", "n", false},
	opAddToStoreNar:               {"AddToStoreNar", formPathInfo + "uu" + "f", "", false},
	opQueryMissing:                {"QueryMissing", "l", "llluu", true},
	opQueryDerivationOutputMap:    {"QueryDerivationOutputMap", "s", "*{ss}", false},
	opRegisterDrvOutput:           {"RegisterDrvOutput", "s", "", false},
	opQueryRealisation:            {"QueryRealisation", "s", "l", false},
	opAddMultipleToStore:          {"AddMultipleToStore", "uu" + "f", "", false},
	opAddBuildLog:                 {"AddBuildLog", "s" + "f", "u", false},
	opBuildPathsWithResults:       {"BuildPathsWithResults", "lu", "", true},
	opAddPermRoot:                 {"AddPermRoot", "ss", "s", false},
}

// form returns the form of an operation as these two sides speak it; false: not known.
func (p proto) form(o op) (form, bool) {
	f, ok := forms[o]
	switch o {
	case opBuildDerivation:
		f.res = p.formResult()
	case opBuildPathsWithResults:
		f.res = "*{s" + p.formResult() + "}"
	}
	if p.has(featureRealisation) {
		switch o {
		case opRegisterDrvOutput:
			f.args = "sssl" // derivation, output name, output path, signatures
		case opQueryRealisation:
			f.args, f.res = "ss", "?{sl}"
		}
	}
	if p.has(featureGCReferrers) && o == opCollectGarbage {
		f.args = "u!{lu}uuuuu"
	}
	return f, ok
}

// formResult is the form of a build result.
func (p proto) formResult() string {
	s := "us" + "uuuu"
	if p.version >= versionCPU {
		s += "?{u}?{u}"
	}
	if p.has(featureRealisation) {
		return s + "*{ssl}"
	}
	return s + "*{ss}"
}

// relay copies a message of the given form from r to w. Errors are in r.err, or come out of w.flush.
func relay(w *writer, r *reader, form string) {
	for i := 0; i < len(form) && r.err == nil; i++ {
		switch form[i] {
		case 'u':
			w.uint(r.uint())
		case 's':
			relayString(w, r)
		case 'l':
			relayList(w, r, "s")
		case 'n':
			copyNar(w.bw, r)
		case '*', '?', '!':
			body := braces(form[i+1:])
			switch form[i] {
			case '*':
				relayList(w, r, body)
			case '?', '!':
				v := r.uint()
				w.uint(v)
				if (v != 0) == (form[i] == '?') {
					relay(w, r, body)
				}
			}
			i += len(body) + 2
		default:
			panic("daemon: form " + form)
		}
	}
}

// braces returns what is in the braces with which form starts.
func braces(form string) string {
	depth := 0
	for i := range len(form) {
		switch form[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return form[1:i]
			}
		}
	}
	panic("daemon: form " + form)
}

func relayList(w *writer, r *reader, body string) {
	n := r.uint()
	w.uint(n)
	for ; n > 0 && r.err == nil; n-- {
		relay(w, r, body)
	}
}

func relayString(w *writer, r *reader) {
	n, pad := r.length()
	w.uint(n)
	r.copyTo(w.bw, n)
	r.copyTo(w.bw, uint64(pad))
}

// relayFrames copies at most limit bytes of frames; limit is checked between frames. It returns true when it has
// copied the end.
func relayFrames(w *writer, r *reader, limit uint64) bool {
	for sent := uint64(0); sent <= limit && r.err == nil; {
		n := r.uint()
		if r.err != nil {
			return false
		}
		w.uint(n)
		if n == 0 {
			return true
		}
		r.copyTo(w.bw, n)
		sent += n
	}
	return false
}
