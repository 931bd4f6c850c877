package binarycache

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"hercules/internal/push/pack"
)

// ErrUnsupported says that a store needs Nix itself to write it.
var ErrUnsupported = errors.New("not written without Nix")

// params are what the query of a store URI says (Nix manual, store types).
type params struct {
	url.Values
	compression   pack.Compression
	secretKeys    []string // files
	writeListing  bool
	debugInfo     bool
	wantMassQuery string
	priority      string
}

func parseParams(q url.Values) (p params, err error) {
	p = params{Values: q, compression: pack.Compression{Method: pack.Zstd}}
	if m := q.Get("compression"); m != "" {
		p.compression.Method = m
	}
	if l := q.Get("compression-level"); l != "" {
		n, err := strconv.Atoi(l)
		if err != nil {
			return p, fmt.Errorf("compression-level %q is not a number", l)
		}
		p.compression.Level = max(0, n) // -1 is Nix's way to say default
	}
	for name, to := range map[string]*bool{
		"parallel-compression": &p.compression.Parallel, "write-nar-listing": &p.writeListing, "index-debug-info": &p.debugInfo,
	} {
		if *to, err = truth(q, name); err != nil {
			return p, err
		}
	}
	if f := q.Get("secret-key"); f != "" {
		p.secretKeys = append(p.secretKeys, f)
	}
	for f := range strings.SplitSeq(q.Get("secret-keys"), ",") {
		if f != "" {
			p.secretKeys = append(p.secretKeys, f)
		}
	}
	p.wantMassQuery, p.priority = q.Get("want-mass-query"), q.Get("priority")
	if p.priority != "" {
		if _, err := strconv.Atoi(p.priority); err != nil {
			return p, fmt.Errorf("priority %q is not a number", p.priority)
		}
	}
	for _, name := range []string{"narinfo-compression", "ls-compression", "log-compression"} {
		if v := q.Get(name); v != "" && v != "none" {
			return p, fmt.Errorf("%w: %s", ErrUnsupported, name)
		}
	}
	if store := q.Get("store"); store != "" && store != "/nix/store" {
		return p, fmt.Errorf("it is for the store directory %s, not /nix/store", store)
	}
	return p, nil
}

func truth(q url.Values, name string) (bool, error) {
	switch v := q.Get(name); v {
	case "", "false", "0", "no":
		return false, nil
	case "true", "1", "yes":
		return true, nil
	default:
		return false, fmt.Errorf("%s is %q, neither true nor false", name, v)
	}
}
