package secrets

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxFile bounds what is read of a file.
const maxFile = 16 << 20

// ReadJoinToken reads the cluster join token: surrounding white space does not count, inner newlines become spaces
// (agent-behaviour §2.2). An empty file is an empty token.
func ReadJoinToken(path string) (Sensitive, error) {
	data, err := readFile(path)
	if err != nil {
		return Sensitive{}, fmt.Errorf("cluster join token: %w", err)
	}
	text := strings.TrimSpace(string(data))
	return NewSensitive(strings.NewReplacer("\r\n", " ", "\n", " ").Replace(text)), nil
}

// JoinTokenID gives the id of a join token: what follows "t$" in its claim sub. Signatures are not checked.
func JoinTokenID(token Sensitive) (string, error) {
	sub, err := claim(token, "sub")
	if err != nil {
		return "", fmt.Errorf("cluster join token: %w", err)
	}
	id, ok := strings.CutPrefix(sub, "t$")
	if !ok || id == "" {
		return "", errors.New("cluster join token: its subject is not that of a join token")
	}
	return id, nil
}

// sessionParent gives the id of the join token that a session was made with.
func sessionParent(token Sensitive) (string, error) {
	parent, err := claim(token, "parent")
	if err != nil {
		return "", fmt.Errorf("session token: %w", err)
	}
	return parent, nil
}

// claim reads a text of the payload of a JSON web token. Its errors do not contain the token.
func claim(token Sensitive, name string) (string, error) {
	parts := strings.Split(token.Reveal(), ".")
	if len(parts) != 3 {
		return "", errors.New("not a JSON web token")
	}
	// Both alphabets, with or without padding: tokens of both kinds are about (agent protocol §7.2).
	payload := strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(parts[1]), "=")
	data, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return "", errors.New("the payload of the JSON web token is not base64")
	}
	var claims map[string]json.RawMessage
	if json.Unmarshal(data, &claims) != nil {
		return "", errors.New("the payload of the JSON web token is not a JSON object")
	}
	var text *string
	if json.Unmarshal(claims[name], &text) != nil || text == nil {
		return "", fmt.Errorf("the JSON web token has no text %q", name)
	}
	return *text, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d MiB", path, maxFile>>20)
	}
	return data, nil
}
