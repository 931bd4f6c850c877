package secrets

import (
	"net/url"
	"strings"

	"hercules/internal/formats"
)

// Substituter is the address at which Nix reads the cache, with the credentials in it, if it has them.
//
// A service that speaks the protocol of Cachix serves a whole binary cache below the address of its API, so the file need
// not say where else it may be (docs/cachix-protocol.md, section 3).
func (c *BinaryCache) Substituter() string {
	switch {
	case c.Kind == formats.KindNixCache:
		return c.StoreURI
	case c.APIBaseURL != "":
		return strings.TrimRight(c.APIBaseURL, "/") + "/api/v1/cache/" + url.PathEscape(c.Name)
	default:
		return "https://" + c.Name + ".cachix.org"
	}
}

// host is where a CachixCache is read.
func (c *BinaryCache) host() string {
	u, err := url.Parse(c.Substituter())
	if err != nil {
		return ""
	}
	return u.Hostname()
}
