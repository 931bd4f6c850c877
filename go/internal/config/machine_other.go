//go:build !linux && !darwin

package config

func memoryMiB() int { return 0 }
