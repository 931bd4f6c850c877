// Package secrets reads and writes the files that hold secrets: the cluster join token, the session key, the binary
// caches with their keys, and the netrc of a task. It does not know what the secrets are used for, talks to no
// network, and never logs a value.
package secrets

import (
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Sensitive is a secret text. Whatever prints, logs or encodes it gets "[redacted]"; Reveal alone gives the text.
// The zero value is the empty text.
type Sensitive struct {
	// A pointer, because fmt does not call methods of unexported fields: printed by reflection, this is an address.
	text *string
}

// NewSensitive wraps a secret.
func NewSensitive(text string) Sensitive { return Sensitive{&text} }

// Reveal gives the secret itself. Each call is a place to look at in review.
func (s Sensitive) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Empty says whether there is no secret.
func (s Sensitive) Empty() bool { return s.Reveal() == "" }

// Equal compares in constant time.
func (s Sensitive) Equal(o Sensitive) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(o.Reveal())) == 1
}

// String implements fmt.Stringer.
func (Sensitive) String() string { return redacted }

// Format implements fmt.Formatter, so that no verb gets at the text.
func (Sensitive) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (Sensitive) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, and with it JSON and TOML.
func (Sensitive) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText takes the text as the secret.
func (s *Sensitive) UnmarshalText(b []byte) error {
	*s = NewSensitive(string(b))
	return nil
}
