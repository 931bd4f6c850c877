package daemon

import (
	"context"
	"slices"
)

// BuildPaths realises paths: it substitutes or builds them. The error tells of all that failed.
func (c *Conn) BuildPaths(ctx context.Context, paths []DerivedPath, mode BuildMode) error {
	if err := checkDerivedPaths(paths); err != nil {
		return err
	}
	return c.call(ctx, opBuildPaths, func() {
		c.w.derivedPaths(paths)
		c.w.uint(uint64(mode))
	}, c.done)
}

// BuildPathsWithResults realises paths and returns a result for each. A failed build is a result and no error, but
// with daemons before Nix 2.8, which report it as an error.
func (c *Conn) BuildPathsWithResults(ctx context.Context, paths []DerivedPath, mode BuildMode) ([]BuildResult, error) {
	if c.proto.version < versionResult {
		return c.buildPathsThenAsk(ctx, paths, mode)
	}
	if err := checkDerivedPaths(paths); err != nil {
		return nil, err
	}
	var results []BuildResult
	err := c.call(ctx, opBuildPathsWithResults, func() {
		c.w.derivedPaths(paths)
		c.w.uint(uint64(mode))
	}, func() {
		c.r.each(func() {
			path := c.r.derivedPath()
			result := c.r.buildResult(c.proto)
			result.Path = path
			results = append(results, *result)
		})
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// buildPathsThenAsk does what BuildPathsWithResults does with a daemon that lacks it.
func (c *Conn) buildPathsThenAsk(ctx context.Context, paths []DerivedPath, mode BuildMode) ([]BuildResult, error) {
	if err := c.BuildPaths(ctx, paths, mode); err != nil {
		return nil, err
	}
	var results []BuildResult
	for _, p := range paths {
		result := BuildResult{Path: p, Status: Substituted, Outputs: map[string]string{}}
		if p.Outputs != nil {
			result.Status = Built
			outputs, err := c.QueryDerivationOutputMap(ctx, p.Path)
			if err != nil {
				return nil, err
			}
			for name, path := range outputs {
				if slices.Contains(p.Outputs, name) || slices.Contains(p.Outputs, "*") {
					result.Outputs[name] = path
				}
			}
		}
		results = append(results, result)
	}
	return results, nil
}

// BuildDerivation builds a derivation whose inputs are all in the store; the derivation itself need not be. The daemon
// must trust the client, or the outputs be content-addressed.
func (c *Conn) BuildDerivation(ctx context.Context, drvPath string, d *BasicDerivation, mode BuildMode) (*BuildResult, error) {
	if err := checkPaths(append([]string{drvPath}, d.Inputs...)...); err != nil {
		return nil, err
	}
	var result *BuildResult
	err := c.call(ctx, opBuildDerivation, func() {
		c.w.string(drvPath)
		c.w.basicDerivation(d)
		c.w.uint(uint64(mode))
	}, func() {
		result = c.r.buildResult(c.proto)
		outputs := []string{}
		for name := range d.Outputs {
			outputs = append(outputs, name)
		}
		slices.Sort(outputs)
		result.Path = DerivedPath{Path: drvPath, Outputs: outputs}
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

// EnsurePath makes a path valid by substituting it.
func (c *Conn) EnsurePath(ctx context.Context, path string) error {
	if err := checkPaths(path); err != nil {
		return err
	}
	return c.call(ctx, opEnsurePath, func() { c.w.string(path) }, c.done)
}
