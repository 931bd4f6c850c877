package push

import "hercules/internal/secrets"

// Waiting says how many pushes wait for an upload of a path to the first cache.
func Waiting(p *Pusher, path string) int {
	c := p.caches[0]
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[path]; f != nil {
		return f.waiters
	}
	return 0
}

// Key is a signing key.
var Key = secrets.NewSensitive
