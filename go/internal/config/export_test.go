package config

// FitTo is fitTo with the facts of any machine.
func (c *Config) FitTo(cpus, memoryMiB int) { c.fitTo(machine{cpus, memoryMiB}) }

// ParseOnly is Parse without the machine.
var ParseOnly = parse
