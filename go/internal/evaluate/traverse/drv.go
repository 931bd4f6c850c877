package traverse

import (
	"log/slog"
	"maps"
	"slices"

	"hercules/internal/nix/derivation"
)

// lookup gives an attribute of a derivation, as the builder would get it.
type lookup func(name string) (value string, ok bool)

func (w *walk) derivationAttrs(path string) (lookup, error) {
	d, err := w.readDerivation(path)
	if err != nil {
		w.deps.Slog.Error("derivation of an effect can't be read", slog.String("drv", path), slog.Any("error", err))
		return nil, err
	}
	return d.Attr, nil
}

// readDerivation reads a derivation that an evaluator may just have written.
func (w *walk) readDerivation(path string) (*derivation.Derivation, error) {
	if w.deps.Flush != nil {
		if err := w.deps.Flush(w.ctx); err != nil {
			return nil, err
		}
	}
	return derivation.Read(w.deps.StoreRoot, path)
}

func (w *walk) derivationOutputs(path string) ([]string, error) {
	d, err := w.readDerivation(path)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(d.Outputs)), nil
}
