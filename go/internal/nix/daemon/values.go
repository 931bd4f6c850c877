package daemon

import (
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
)

const storeDir = "/nix/store"

// path reads a store path. Callers join it with Endpoint.Root, so nothing else may come through.
func (r *reader) path() string {
	p := r.string()
	if r.err == nil && !validPath(p) {
		r.fail(malformed("%q is not a store path", p))
		return ""
	}
	return p
}

// pathOrNone reads a store path or an empty text.
func (r *reader) pathOrNone() string {
	p := r.string()
	if r.err == nil && p != "" && !validPath(p) {
		r.fail(malformed("%q is not a store path", p))
		return ""
	}
	return p
}

func (r *reader) paths() []string {
	var ps []string
	r.each(func() { ps = append(ps, r.path()) })
	return ps
}

// validPath tells whether p names an object of the store: /nix/store/HASH-NAME, nothing below it.
func validPath(p string) bool {
	const hashLen, maxName = 32, 211
	base, ok := strings.CutPrefix(p, storeDir+"/")
	if !ok || len(base) < hashLen+2 || len(base) > hashLen+1+maxName || base[hashLen] != '-' {
		return false
	}
	for _, c := range []byte(base[:hashLen]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') || c == 'e' || c == 'o' || c == 't' || c == 'u' {
			return false
		}
	}
	return validName(base[hashLen+1:])
}

// validName tells whether s can be the name of a store object.
func validName(s string) bool {
	if s == "" || len(s) > 211 || s == "." || s == ".." || strings.HasPrefix(s, ".-") || strings.HasPrefix(s, "..-") {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', strings.IndexByte("+-._?=", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// String is the form that a DerivedPath has in the protocol and on command lines: PATH, or DRV!OUTPUT,OUTPUT.
func (p DerivedPath) String() string {
	if p.Outputs == nil {
		return p.Path
	}
	return p.Path + "!" + strings.Join(p.Outputs, ",")
}

// ParseDerivedPath is the inverse of String.
func ParseDerivedPath(s string) (DerivedPath, error) {
	path, outputs, found := strings.Cut(s, "!")
	if !validPath(path) {
		return DerivedPath{}, malformed("%q is not a store path", s)
	}
	if !found {
		return DerivedPath{Path: path}, nil
	}
	d := DerivedPath{Path: path, Outputs: strings.Split(outputs, ",")}
	if slices.Contains(d.Outputs, "") {
		return DerivedPath{}, malformed("%q has an empty output name", s)
	}
	return d, nil
}

func (r *reader) derivedPath() DerivedPath {
	s := r.string()
	if r.err != nil {
		return DerivedPath{}
	}
	d, err := ParseDerivedPath(s)
	if err != nil {
		r.fail(err)
	}
	return d
}

func (r *reader) derivedPaths() []DerivedPath {
	var ps []DerivedPath
	r.each(func() { ps = append(ps, r.derivedPath()) })
	return ps
}

func (w *writer) derivedPaths(ps []DerivedPath) {
	w.uint(uint64(len(ps)))
	for _, p := range ps {
		w.string(p.String())
	}
}

// pathInfo reads all of a PathInfo but its path.
func (r *reader) pathInfo(path string) *PathInfo {
	info := &PathInfo{Path: path, Deriver: r.pathOrNone()}
	if h := r.string(); r.err == nil {
		var err error
		if info.NarHash, err = hex.DecodeString(h); err != nil || len(info.NarHash) != 32 {
			r.fail(malformed("NAR hash %q", h))
		}
	}
	info.References = r.paths()
	info.RegistrationTime = r.uint()
	info.NarSize = r.uint()
	info.Ultimate = r.bool()
	info.Signatures = r.strings()
	info.ContentAddress = r.string()
	return info
}

// pathInfo writes all of a PathInfo but its path.
func (w *writer) pathInfo(info *PathInfo) {
	w.string(info.Deriver)
	w.string(hex.EncodeToString(info.NarHash))
	w.strings(info.References)
	w.uint(info.RegistrationTime)
	w.uint(info.NarSize)
	w.bool(info.Ultimate)
	w.strings(info.Signatures)
	w.string(info.ContentAddress)
}

func (r *reader) buildResult(p proto) *BuildResult {
	b := &BuildResult{Status: BuildStatus(r.uint()), ErrorMsg: r.string()}
	b.TimesBuilt = r.uint()
	b.NonDeterministic = r.bool()
	b.StartTime, b.StopTime = r.uint(), r.uint()
	if p.version >= versionCPU {
		b.CPUUser, b.CPUSystem = r.microseconds(), r.microseconds()
	}
	b.Outputs = map[string]string{}
	if p.has(featureRealisation) {
		r.each(func() {
			name := r.string()
			b.Outputs[name] = r.path()
			r.strings() // signatures
		})
		return b
	}
	// A map from "sha256:HASH!OUTPUT" to a realisation in JSON, whose path has no store directory.
	r.each(func() {
		id, text := r.string(), r.string()
		_, name, _ := strings.Cut(id, "!")
		var realisation struct {
			OutPath string `json:"outPath"`
		}
		if r.err != nil {
			return
		}
		if err := json.Unmarshal([]byte(text), &realisation); err != nil || name == "" {
			r.fail(malformed("realisation %q of %q", text, id))
			return
		}
		path := realisation.OutPath
		if !strings.HasPrefix(path, "/") {
			path = storeDir + "/" + path
		}
		if !validPath(path) {
			r.fail(malformed("realisation %q of %q", text, id))
			return
		}
		b.Outputs[name] = path
	})
	return b
}

// microseconds reads an optional duration; absent is 0.
func (r *reader) microseconds() time.Duration {
	switch tag := r.uint(); tag {
	case 0:
		return 0
	case 1:
		return time.Duration(r.uint()) * time.Microsecond
	default:
		r.fail(malformed("tag %d of an optional value", tag))
		return 0
	}
}

// basicDerivation has no name on the wire: that comes from the derivation's path (derivations.cc, writeDerivation).
func (w *writer) basicDerivation(d *BasicDerivation) {
	w.uint(uint64(len(d.Outputs)))
	for _, name := range slices.Sorted(maps.Keys(d.Outputs)) {
		o := d.Outputs[name]
		w.string(name)
		w.string(o.Path)
		w.string(o.HashAlgo)
		w.string(o.Hash)
	}
	w.strings(d.Inputs)
	w.string(d.Platform)
	w.string(d.Builder)
	w.strings(d.Args)
	w.stringMap(d.Env)
}

func (r *reader) basicDerivation() *BasicDerivation {
	d := &BasicDerivation{Outputs: map[string]DerivationOutput{}}
	r.each(func() {
		name := r.string()
		d.Outputs[name] = DerivationOutput{Path: r.string(), HashAlgo: r.string(), Hash: r.string()}
	})
	d.Inputs = r.paths()
	d.Platform = r.string()
	d.Builder = r.string()
	d.Args = r.strings()
	d.Env = r.stringMap()
	return d
}
