package traverse

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"hercules/internal/wire/agentapi"
)

//go:embed lib/*.nix
var library embed.FS

// jobInput is what the library gets (lib/default.nix), as JSON.
type jobInput struct {
	File          string                  `json:"file"`
	Flake         *string                 `json:"flake"`
	Source        map[string]*string      `json:"source"`
	APIBaseURL    string                  `json:"apiBaseUrl"`
	CISystems     *map[string][0]int      `json:"ciSystems"`
	AutoArguments map[string]autoArgInput `json:"autoArguments"`
	HandlerKind   string                  `json:"handlerKind"`
	HandlerName   string                  `json:"handlerName"`
	Inputs        map[string]flakeInput   `json:"inputs"`
}

type autoArgInput struct {
	Path     string                     `json:"path"`
	Metadata map[string]json.RawMessage `json:"metadata"`
}

// flakeInput is an extra input: one of the two.
type flakeInput struct {
	Flake   *string `json:"flake"`
	Archive *string `json:"archive"`
}

func newJobInput(j *Job) (*jobInput, error) {
	in := &jobInput{
		File: j.File, Source: j.Source.attributes(), APIBaseURL: j.APIBaseURL,
		AutoArguments: map[string]autoArgInput{}, Inputs: map[string]flakeInput{},
	}
	switch {
	case (j.File == "") == (j.Flake == ""):
		return nil, errors.New("job: exactly one of file and flake must be set")
	case j.Flake != "":
		in.Flake = &j.Flake
	}
	if j.CISystems != nil {
		m := map[string][0]int{}
		for _, s := range j.CISystems {
			m[s] = [0]int{}
		}
		in.CISystems = &m
	}
	for name, a := range j.AutoArguments {
		in.AutoArguments[name] = autoArgInput(a)
	}
	var inputs agentapi.Map[string, agentapi.ImmutableInput]
	switch s := j.Selector; {
	case s.OnPush != nil:
		in.HandlerKind, in.HandlerName, inputs = "onPush", s.OnPush.Name, s.OnPush.Inputs
	case s.OnSchedule != nil:
		in.HandlerKind, in.HandlerName, inputs = "onSchedule", s.OnSchedule.Name, s.OnSchedule.ExtraInputs
	case s.ConfigOrLegacy == nil:
		return nil, errors.New("job: selector is not set")
	}
	for name, i := range inputs {
		switch {
		case i.Git != nil:
			ref := GitFlakeRef(i.Git.HTTPURL, i.Git.Ref, i.Git.Rev)
			in.Inputs[name] = flakeInput{Flake: &ref}
		case i.ArchiveURL != nil:
			in.Inputs[name] = flakeInput{Archive: i.ArchiveURL}
		default:
			return nil, fmt.Errorf("job: input %q is neither git nor archive", name)
		}
	}
	return in, nil
}

// attributes of GitSource (agent-behaviour 3.4): absent data is null, keys are always there.
func (s *GitSource) attributes() map[string]*string {
	opt := func(v string) *string {
		if v == "" {
			return nil
		}
		return &v
	}
	cut := func(prefix string) *string {
		rest, ok := strings.CutPrefix(s.Ref, prefix)
		if !ok {
			return nil
		}
		return &rest
	}
	short := s.Rev
	if len(short) > 7 {
		short = short[:7]
	}
	return map[string]*string{
		"outPath": opt(s.OutPath), "ref": opt(s.Ref), "rev": opt(s.Rev), "shortRev": opt(short),
		"branch": cut("refs/heads/"), "tag": cut("refs/tags/"),
		"remoteHttpUrl": opt(s.RemoteHTTPURL), "remoteSshUrl": opt(s.RemoteSSHURL), "webUrl": opt(s.WebURL),
		"forgeType": opt(s.ForgeType), "owner": opt(s.Owner), "name": opt(s.Name),
	}
}

// writeLibrary fills dir with what the evaluators read.
func writeLibrary(dir string, in *jobInput) error {
	lib := filepath.Join(dir, "lib")
	if err := os.Mkdir(lib, 0o700); err != nil {
		return err
	}
	names, err := fs.Glob(library, "lib/*.nix")
	if err != nil {
		return err
	}
	for _, name := range names {
		b, err := library.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	b, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("writing the job for the evaluator: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "job.json"), b, 0o600)
}
