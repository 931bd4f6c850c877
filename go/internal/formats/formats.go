// Package formats holds the documents of the files that stand beside the wire (agent protocol, appendix A):
// entries of secrets.json and binary-caches.json, conditions and mountables.
//
// It must not know where those files are, nor decide about access.
package formats

import (
	"encoding/json"
	"fmt"

	"hercules/internal/wire/codec"
)

// Unmarshal decodes a document strictly into what v points to.
func Unmarshal(data []byte, v any) error { return codec.Unmarshal(data, v) }

// Marshal returns the JSON of a document.
func Marshal(v any) ([]byte, error) { return codec.Marshal(v) }

// Kind is the value of the key "kind".
type Kind string

// The kinds.
const (
	KindSecret      Kind = "Secret"
	KindNixCache    Kind = "NixCache"
	KindCachixCache Kind = "CachixCache"
)

// noVersion stands for the key apiVersion, which must be absent or null.
type noVersion struct{}

func (*noVersion) AppendWire(b []byte) ([]byte, error) { return append(b, "null"...), nil }

func (*noVersion) DecodeWire(*codec.Decoder) error {
	return &codec.Error{Msg: "this version is not supported; leave the key out"}
}

// Secret is an entry of secrets.json.
type Secret struct {
	Data map[string]json.RawMessage

	Condition *Condition
}

type secretRecord struct {
	Kind       Kind                       `json:"kind"`
	APIVersion *noVersion                 `json:"apiVersion,omitempty"`
	Data       map[string]json.RawMessage `json:"data"`
	Condition  *Condition                 `json:"condition,omitempty"`
}

func wrongKind(got, want Kind) error {
	return codec.Key("kind", &codec.Error{Msg: fmt.Sprintf("%q where %q should be", got, want)})
}

// AppendWire implements codec.Encoder.
func (s *Secret) AppendWire(b []byte) ([]byte, error) {
	return codec.Append(b, &secretRecord{Kind: KindSecret, Data: s.Data, Condition: s.Condition})
}

// DecodeWire implements codec.Decodable.
func (s *Secret) DecodeWire(d *codec.Decoder) error {
	var r secretRecord
	if err := d.Decode(&r); err != nil {
		return err
	}
	if r.Kind != KindSecret {
		return wrongKind(r.Kind, KindSecret)
	}
	*s = Secret{Data: r.Data, Condition: r.Condition}
	return nil
}

// Mountable is a path that effects may mount.
type Mountable struct {
	Source    string    `json:"source"`
	ReadOnly  bool      `json:"readOnly"`
	Condition Condition `json:"condition"`
}

// NixCache is a cache that Nix itself pushes to.
type NixCache struct {
	StoreURI    string
	SigningKeys []string
	PublicKeys  []string
	Upload      Upload
}

// Upload is how an agent uploads to a cache. These keys are this project's own and all optional.
type Upload struct {
	Compression      *string
	CompressionLevel *int64
	Concurrency      *int64
}

type nixCacheRecord struct {
	Kind        Kind       `json:"kind"`
	APIVersion  *noVersion `json:"apiVersion,omitempty"`
	StoreURI    string     `json:"storeURI"`
	SigningKeys []string   `json:"signingKeys"`
	PublicKeys  []string   `json:"publicKeys"`

	Compression      *string `json:"compression,omitempty"`
	CompressionLevel *int64  `json:"compressionLevel,omitempty"`
	Concurrency      *int64  `json:"concurrency,omitempty"`
}

// AppendWire implements codec.Encoder.
func (c *NixCache) AppendWire(b []byte) ([]byte, error) {
	return codec.Append(b, &nixCacheRecord{
		Kind: KindNixCache, StoreURI: c.StoreURI, SigningKeys: c.SigningKeys, PublicKeys: c.PublicKeys,
		Compression: c.Upload.Compression, CompressionLevel: c.Upload.CompressionLevel, Concurrency: c.Upload.Concurrency,
	})
}

// DecodeWire implements codec.Decodable.
func (c *NixCache) DecodeWire(d *codec.Decoder) error {
	var r nixCacheRecord
	if err := d.Decode(&r); err != nil {
		return err
	}
	if r.Kind != KindNixCache {
		return wrongKind(r.Kind, KindNixCache)
	}
	*c = NixCache{
		StoreURI: r.StoreURI, SigningKeys: r.SigningKeys, PublicKeys: r.PublicKeys,
		Upload: Upload{r.Compression, r.CompressionLevel, r.Concurrency},
	}
	return nil
}

// CachixCache is a cache at Cachix.
type CachixCache struct {
	SigningKeys []string
	AuthToken   *string
	PublicKeys  []string
	// APIBaseURL is the address of another service that speaks the protocol of Cachix. This project's own.
	APIBaseURL *string
	Upload     Upload
}

type cachixCacheRecord struct {
	Kind        Kind       `json:"kind"`
	APIVersion  *noVersion `json:"apiVersion,omitempty"`
	SigningKeys []string   `json:"signingKeys" default:"[]"`
	AuthToken   *string    `json:"authToken,omitempty"`
	PublicKeys  []string   `json:"publicKeys"`

	APIBaseURL       *string `json:"apiBaseUrl,omitempty"`
	Compression      *string `json:"compression,omitempty"`
	CompressionLevel *int64  `json:"compressionLevel,omitempty"`
	Concurrency      *int64  `json:"concurrency,omitempty"`
}

// AppendWire implements codec.Encoder.
func (c *CachixCache) AppendWire(b []byte) ([]byte, error) {
	return codec.Append(b, &cachixCacheRecord{
		Kind: KindCachixCache, SigningKeys: c.SigningKeys, AuthToken: c.AuthToken, PublicKeys: c.PublicKeys, APIBaseURL: c.APIBaseURL,
		Compression: c.Upload.Compression, CompressionLevel: c.Upload.CompressionLevel, Concurrency: c.Upload.Concurrency,
	})
}

// DecodeWire implements codec.Decodable.
func (c *CachixCache) DecodeWire(d *codec.Decoder) error {
	var r cachixCacheRecord
	if err := d.Decode(&r); err != nil {
		return err
	}
	if r.Kind != KindCachixCache {
		return wrongKind(r.Kind, KindCachixCache)
	}
	*c = CachixCache{
		SigningKeys: r.SigningKeys, AuthToken: r.AuthToken, PublicKeys: r.PublicKeys, APIBaseURL: r.APIBaseURL,
		Upload: Upload{r.Compression, r.CompressionLevel, r.Concurrency},
	}
	return nil
}
