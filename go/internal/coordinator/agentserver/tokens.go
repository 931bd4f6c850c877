package agentserver

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"hercules/internal/wire/agentapi"
)

// Tokens makes the tokens of a coordinator. They are JWTs, since agents compare the claims of join token and session
// to notice a changed join token (protocol 7.2). Their payloads are plain ASCII, which agents need to decode them.
type Tokens struct {
	key  [32]byte
	join map[string]string // identifier by join token
}

// NewTokens returns tokens signed with a fresh key. Sessions and join tokens are valid as long as they are known here;
// the signature makes them unguessable.
func NewTokens() *Tokens {
	t := &Tokens{join: map[string]string{}}
	_, _ = rand.Read(t.key[:]) // never fails
	return t
}

// NewJoin makes a cluster join token. Call it before the server is used.
func (t *Tokens) NewJoin() string {
	id := string(agentapi.NewID())
	token := t.jwt(fmt.Sprintf(`{"sub":"t$%s"}`, id))
	t.join[token] = id
	return token
}

// CheckJoin returns the identifier of a join token.
func (t *Tokens) CheckJoin(token string) (id string, ok bool) {
	for known, knownID := range t.join {
		if subtle.ConstantTimeCompare([]byte(known), []byte(token)) == 1 {
			id, ok = knownID, true
		}
	}
	return id, ok
}

// NewSession makes a session token for a holder of a join token.
func (t *Tokens) NewSession(join string, session agentapi.ID) string {
	return t.jwt(fmt.Sprintf(`{"parent":"%s","sub":"s$%s"}`, join, session))
}

func (t *Tokens) jwt(payload string) string {
	enc := base64.RawURLEncoding
	signed := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString([]byte(payload))
	mac := hmac.New(sha256.New, t.key[:])
	_, _ = mac.Write([]byte(signed))
	return signed + "." + enc.EncodeToString(mac.Sum(nil))
}

// Secret returns 26 random letters and digits: for log tokens and source URLs.
func Secret() string { return strings.ToLower(rand.Text()) }
