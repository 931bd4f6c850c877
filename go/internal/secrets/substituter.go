package secrets

import "hercules/internal/formats"

// Substituter is the address at which Nix reads the cache, with the credentials in it, if it has them.
func (c *BinaryCache) Substituter() string {
	if c.Kind == formats.KindNixCache {
		return c.StoreURI
	}
	return "https://" + c.Name + ".cachix.org"
}
