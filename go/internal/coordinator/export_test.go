package coordinator

// Congested tells whether log lines wait for a reader of events.
func (c *Coordinator) Congested() bool {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	for s := range c.hub.subs {
		if s.room != nil {
			return true
		}
	}
	return false
}
