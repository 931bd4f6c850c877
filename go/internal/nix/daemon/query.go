package daemon

import (
	"context"
	"fmt"
)

// checkPaths refuses what the daemon would answer by leaving.
func checkPaths(paths ...string) error {
	for _, p := range paths {
		if !validPath(p) {
			return fmt.Errorf("%q is not a store path", p)
		}
	}
	return nil
}

func checkDerivedPaths(paths []DerivedPath) error {
	for _, p := range paths {
		if err := checkPaths(p.Path); err != nil {
			return err
		}
		for _, o := range p.Outputs {
			if o != "*" && !validName(o) {
				return fmt.Errorf("%q is not the name of an output", o)
			}
		}
		if p.Outputs != nil && len(p.Outputs) == 0 {
			return fmt.Errorf("no outputs of %s are asked for", p.Path)
		}
	}
	return nil
}

// IsValidPath tells whether the store has path.
func (c *Conn) IsValidPath(ctx context.Context, path string) (valid bool, err error) {
	if err := checkPaths(path); err != nil {
		return false, err
	}
	err = c.call(ctx, opIsValidPath, func() { c.w.string(path) }, func() { valid = c.r.bool() })
	return valid, err
}

// QueryValidPaths returns those of paths that the store has; with substitute it first tries to get them.
func (c *Conn) QueryValidPaths(ctx context.Context, paths []string, substitute bool) (valid []string, err error) {
	if err := checkPaths(paths...); err != nil {
		return nil, err
	}
	err = c.call(ctx, opQueryValidPaths, func() {
		c.w.strings(paths)
		c.w.bool(substitute)
	}, func() { valid = c.r.paths() })
	return valid, err
}

// QueryAllValidPaths returns every path of the store.
func (c *Conn) QueryAllValidPaths(ctx context.Context) (paths []string, err error) {
	err = c.call(ctx, opQueryAllValidPaths, nil, func() { paths = c.r.paths() })
	return paths, err
}

// QueryPathInfo returns what the store knows of path, found being false when it has not got it.
func (c *Conn) QueryPathInfo(ctx context.Context, path string) (info *PathInfo, found bool, err error) {
	if err := checkPaths(path); err != nil {
		return nil, false, err
	}
	err = c.call(ctx, opQueryPathInfo, func() { c.w.string(path) }, func() {
		if found = c.r.bool(); found {
			info = c.r.pathInfo(path)
		}
	})
	if err != nil {
		return nil, false, err
	}
	return info, found, nil
}

// QueryReferrers returns the paths of the store that refer to path.
func (c *Conn) QueryReferrers(ctx context.Context, path string) ([]string, error) {
	return c.queryPaths(ctx, opQueryReferrers, path)
}

// QueryValidDerivers returns the derivations of the store that have path as an output.
func (c *Conn) QueryValidDerivers(ctx context.Context, path string) ([]string, error) {
	return c.queryPaths(ctx, opQueryValidDerivers, path)
}

func (c *Conn) queryPaths(ctx context.Context, o op, path string) (paths []string, err error) {
	if err := checkPaths(path); err != nil {
		return nil, err
	}
	err = c.call(ctx, o, func() { c.w.string(path) }, func() { paths = c.r.paths() })
	return paths, err
}

// QueryPathFromHashPart returns the path whose base name starts with these 32 characters, or empty.
func (c *Conn) QueryPathFromHashPart(ctx context.Context, hashPart string) (path string, err error) {
	err = c.call(ctx, opQueryPathFromHashPart, func() { c.w.string(hashPart) }, func() { path = c.r.pathOrNone() })
	return path, err
}

// QuerySubstitutablePaths returns those of paths that a substituter has.
func (c *Conn) QuerySubstitutablePaths(ctx context.Context, paths []string) (found []string, err error) {
	if err := checkPaths(paths...); err != nil {
		return nil, err
	}
	err = c.call(ctx, opQuerySubstitutablePaths, func() { c.w.strings(paths) }, func() { found = c.r.paths() })
	return found, err
}

// QuerySubstitutablePathInfos returns what substituters know of paths; unknown ones are left out.
func (c *Conn) QuerySubstitutablePathInfos(ctx context.Context, paths []string) (infos []SubstitutablePathInfo, err error) {
	if err := checkPaths(paths...); err != nil {
		return nil, err
	}
	err = c.call(ctx, opQuerySubstitutablePathInfos, func() {
		c.w.uint(uint64(len(paths)))
		for _, p := range paths {
			c.w.string(p)
			c.w.string("") // content address
		}
	}, func() {
		c.r.each(func() {
			infos = append(infos, SubstitutablePathInfo{
				Path:         c.r.path(),
				Deriver:      c.r.pathOrNone(),
				References:   c.r.paths(),
				DownloadSize: c.r.uint(),
				NarSize:      c.r.uint(),
			})
		})
	})
	return infos, err
}

// QueryMissing tells what would have to be built and substituted to have paths.
func (c *Conn) QueryMissing(ctx context.Context, paths []DerivedPath) (*Missing, error) {
	if err := checkDerivedPaths(paths); err != nil {
		return nil, err
	}
	var m Missing
	err := c.call(ctx, opQueryMissing, func() { c.w.derivedPaths(paths) }, func() {
		m = Missing{
			WillBuild:      c.r.paths(),
			WillSubstitute: c.r.paths(),
			Unknown:        c.r.paths(),
			DownloadSize:   c.r.uint(),
			NarSize:        c.r.uint(),
		}
	})
	if err != nil {
		return nil, err
	}
	return &m, nil
}

// QueryDerivationOutputMap returns the output paths of a derivation of the store. A path is empty when it is not known
// yet, as that of a content-addressed output that has not been built.
func (c *Conn) QueryDerivationOutputMap(ctx context.Context, drv string) (map[string]string, error) {
	if err := checkPaths(drv); err != nil {
		return nil, err
	}
	outputs := map[string]string{}
	err := c.call(ctx, opQueryDerivationOutputMap, func() { c.w.string(drv) }, func() {
		c.r.each(func() {
			name := c.r.string()
			outputs[name] = c.r.pathOrNone()
		})
	})
	if err != nil {
		return nil, err
	}
	return outputs, nil
}
