//go:build !linux

package testnix

import "errors"

// sandboxPossible: a chroot store cannot be built in without Linux's namespaces.
func sandboxPossible() error { return errors.New("chroot stores need Linux") }
