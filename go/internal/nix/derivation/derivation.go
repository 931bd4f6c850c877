// Package derivation reads and writes Nix derivations (.drv files) in the ATerm form.
//
// Texts in it are bytes: nothing needs to be UTF-8. What is read is written again byte for byte, as long as it came
// from Nix. The package knows nothing of builds.
package derivation

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"hercules/internal/nix/daemon"
	"hercules/internal/nix/storepath"
)

// MaxSize bounds the text of a derivation. Nix has no limit; real ones have a few KiB, and those that carry a whole
// configuration in an attribute a few MiB.
const MaxSize = 64 << 20

// Derivation is a store derivation.
type Derivation struct {
	Outputs map[string]Output
	// InputDrvs maps derivation paths to the names of the outputs that are needed, in the order of the file.
	InputDrvs map[string][]string
	// DynamicInputs has the outputs of outputs that are needed (experimental dynamic derivations): by derivation
	// path, then by the name of the output that is itself a derivation. Nil almost always.
	DynamicInputs map[string]map[string]DynamicInput
	InputSrcs     []string
	Platform      string
	Builder       string
	Args          []string
	Env           map[string]string
}

// Output of a derivation. The path is empty when it is known only after the build: floating content-addressed
// outputs, and outputs of derivations that depend on such (which then have no HashAlgo either).
type Output struct {
	Path, HashAlgo, Hash string
}

// DynamicInput is what is needed of a derivation that a build makes.
type DynamicInput struct {
	Outputs []string
	Dynamic map[string]DynamicInput
}

// Read reads the derivation with the store path path, where root is the store's root in this machine's file system
// (empty for the ordinary store).
func Read(root, path string) (*Derivation, error) {
	if err := storepath.Check(path); err != nil {
		return nil, err
	}
	if !storepath.IsDerivation(path) {
		return nil, fmt.Errorf("%s is not a derivation", path)
	}
	text, err := readFile(root + path)
	if err != nil {
		return nil, fmt.Errorf("reading derivation: %w", err)
	}
	d, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("reading derivation %s: %w", path, err)
	}
	return d, nil
}

// readFile reads into the memory that the strings of the derivation then share.
func readFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	switch {
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a regular file", name)
	case info.Size() > MaxSize:
		return "", fmt.Errorf("%s has %d bytes, more than %d", name, info.Size(), MaxSize)
	}
	var b strings.Builder
	b.Grow(int(info.Size()))
	_, err = io.Copy(&b, io.LimitReader(f, info.Size()))
	return b.String(), err
}

// OutputPaths maps the names of the outputs to their paths, as far as they are known before the build.
func (d *Derivation) OutputPaths() map[string]string {
	paths := make(map[string]string, len(d.Outputs))
	for name, o := range d.Outputs {
		if o.Path != "" {
			paths[name] = o.Path
		}
	}
	return paths
}

// IsFixed tells whether the derivation has a fixed output: one whose hash is given in advance.
func (d *Derivation) IsFixed() bool {
	o, ok := d.Outputs["out"]
	return ok && len(d.Outputs) == 1 && o.HashAlgo != "" && o.Hash != "" && o.Hash != "impure"
}

// HasKnownPaths tells whether the paths of all outputs are known before the build.
func (d *Derivation) HasKnownPaths() bool {
	for _, o := range d.Outputs {
		if o.Path == "" {
			return false
		}
	}
	return true
}

// StructuredAttrs gives the attributes of a derivation with __structuredAttrs; ok is false for others, whose
// attributes are Env.
func (d *Derivation) StructuredAttrs() (attrs map[string]json.RawMessage, ok bool, err error) {
	text, ok := d.Env["__json"]
	if !ok {
		return nil, false, nil
	}
	if err := json.Unmarshal([]byte(text), &attrs); err != nil {
		return nil, true, fmt.Errorf("structured attributes: %w", err)
	}
	return attrs, true, nil
}

// Attr gives an attribute that is a text, from the structured attributes where there are such.
func (d *Derivation) Attr(name string) (value string, ok bool) {
	attrs, structured, err := d.StructuredAttrs()
	if err != nil {
		return "", false
	}
	if !structured {
		value, ok = d.Env[name]
		return value, ok
	}
	raw, ok := attrs[name]
	if !ok || json.Unmarshal(raw, &value) != nil {
		return "", false
	}
	return value, true
}

// RequiredSystemFeatures gives the features that a machine needs to build the derivation, sorted. It is what the
// derivation says and does not add "ca-derivations" (see [Derivation.HasKnownPaths]), as Nix does when it chooses a
// machine.
func (d *Derivation) RequiredSystemFeatures() []string {
	const name = "requiredSystemFeatures"
	var features []string
	if attrs, structured, err := d.StructuredAttrs(); structured {
		// Nix refuses to build when this is not a list of texts; that is for the build to report.
		if err != nil || json.Unmarshal(attrs[name], &features) != nil {
			return nil
		}
	} else {
		features = strings.FieldsFunc(d.Env[name], func(r rune) bool { return strings.ContainsRune(" \t\n\r", r) })
	}
	slices.Sort(features)
	return slices.Compact(features)
}

// ToBasic makes of the derivation one whose inputs are the given store paths, which are the outputs of InputDrvs
// that it needs. InputSrcs are added.
func (d *Derivation) ToBasic(inputs []string) *daemon.BasicDerivation {
	all := slices.Concat(d.InputSrcs, inputs)
	slices.Sort(all)
	b := &daemon.BasicDerivation{
		Outputs:  make(map[string]daemon.DerivationOutput, len(d.Outputs)),
		Inputs:   slices.Compact(all),
		Platform: d.Platform,
		Builder:  d.Builder,
		Args:     d.Args,
		Env:      d.Env,
	}
	for name, o := range d.Outputs {
		b.Outputs[name] = daemon.DerivationOutput{Path: o.Path, HashAlgo: o.HashAlgo, Hash: o.Hash}
	}
	return b
}
