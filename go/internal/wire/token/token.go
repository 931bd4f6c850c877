// Package token reads the ids in cluster join tokens and session tokens (agent protocol, section 7.2). They say
// whether a stored session belongs to the present join token.
//
// It checks no signatures: the coordinator does. It must not know where tokens are kept, and never puts one
// into an error.
package token

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// JoinID returns the id of a cluster join token: claim sub without its prefix t$.
func JoinID(token string) (string, error) {
	var claims struct {
		Sub *string `json:"sub"`
	}
	if err := decode(token, &claims); err != nil {
		return "", fmt.Errorf("cluster join token: %w", err)
	}
	if claims.Sub == nil {
		return "", errors.New("cluster join token: no claim sub")
	}
	id, ok := strings.CutPrefix(*claims.Sub, "t$")
	if !ok {
		return "", errors.New("cluster join token: claim sub does not start with t$")
	}
	return id, nil
}

// SessionJoinID returns the id of the join token that a session was made with: claim parent.
func SessionJoinID(token string) (string, error) {
	var claims struct {
		Parent *string `json:"parent"`
	}
	if err := decode(token, &claims); err != nil {
		return "", fmt.Errorf("session token: %w", err)
	}
	if claims.Parent == nil {
		return "", errors.New("session token: no claim parent")
	}
	return *claims.Parent, nil
}

// Belongs says whether a session was made with a join token. An error means that it can't be told, as with
// opaque tokens; then the session is to be used as it is.
func Belongs(session, join string) (bool, error) {
	want, err := JoinID(join)
	if err != nil {
		return false, err
	}
	got, err := SessionJoinID(session)
	if err != nil {
		return false, err
	}
	return got == want, nil
}

// decode decodes the payload of a JWT.
func decode(token string, claims any) error {
	parts := strings.Split(token, ".")
	if len(parts) < 2 {
		return errors.New("not a JWT")
	}
	payload, err := base64.RawStdEncoding.DecodeString(strings.Map(alphabet, parts[1]))
	if err != nil {
		return errors.New("not a JWT: its payload is no base64")
	}
	// The error would quote what it does not understand.
	if json.Unmarshal(payload, claims) != nil {
		return errors.New("not a JWT: its payload is not the JSON it should be")
	}
	return nil
}

// alphabet keeps the characters of both base64 alphabets, and drops padding and all others, as the reference
// does. (The reference drops - and _ too, which garbles the rest.)
func alphabet(r rune) rune {
	switch {
	case 'A' <= r && r <= 'Z', 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '+', r == '/':
		return r
	case r == '-':
		return '+'
	case r == '_':
		return '/'
	}
	return -1
}
