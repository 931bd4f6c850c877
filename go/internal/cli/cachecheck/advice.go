package cachecheck

import (
	"slices"
	"strings"

	"hercules/internal/logging"
)

// Advice is what to change in Nix's own configuration.
type Advice struct {
	// User that the daemon should trust.
	User string
	// Trust: the user has to be trusted.
	Trust bool
	// NegativeTTL: the setting narinfo-cache-negative-ttl has to be 0.
	NegativeTTL bool
	// Substituters and Keys that the daemon would have to know by itself, if the user is not to be trusted.
	Substituters, Keys []string
}

func (a *Advice) want(substituter string, keys []string) {
	a.Trust = true
	if s := logging.Redact(substituter); !slices.Contains(a.Substituters, s) {
		a.Substituters = append(a.Substituters, s)
	}
	for _, k := range keys {
		if !slices.Contains(a.Keys, k) {
			a.Keys = append(a.Keys, k)
		}
	}
}

// NixConf gives the lines for nix.conf.
func (a *Advice) NixConf() []string {
	var lines []string
	if a.NegativeTTL {
		lines = append(lines, "narinfo-cache-negative-ttl = 0")
	}
	if a.Trust {
		lines = append(lines, "extra-trusted-users = "+a.User)
	}
	return lines
}

// NixOS gives the same for the configuration of NixOS and nix-darwin.
func (a *Advice) NixOS() []string {
	var lines []string
	if a.NegativeTTL {
		lines = append(lines, "nix.settings.narinfo-cache-negative-ttl = 0;")
	}
	if a.Trust {
		lines = append(lines, "nix.settings.trusted-users = "+nixList([]string{a.User})+";")
	}
	return lines
}

// Untrusting gives the lines for nix.conf that do instead of those of a trusted user. Without caches there are none.
func (a *Advice) Untrusting() []string {
	if !a.Trust || len(a.Substituters) == 0 {
		return nil
	}
	lines := []string{"extra-substituters = " + strings.Join(a.Substituters, " ")}
	if len(a.Keys) > 0 {
		lines = append(lines, "extra-trusted-public-keys = "+strings.Join(a.Keys, " "))
	}
	return lines
}

func nixList(words []string) string {
	var b strings.Builder
	b.WriteString("[")
	for _, w := range words {
		b.WriteString(` "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `${`, `\${`).Replace(w) + `"`)
	}
	return b.String() + " ]"
}
