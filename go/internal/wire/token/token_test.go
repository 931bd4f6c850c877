package token_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"hercules/internal/wire/token"
)

const id = "7c1e0009-52f4-4a6b-9b0d-3e8f6a21004f"

func jwt(e *base64.Encoding, payload string) string {
	return "eyJhbGciOiJIUzI1NiJ9." + e.EncodeToString([]byte(payload)) + ".c2lnbmF0dXJl"
}

func TestBelongs(t *testing.T) {
	t.Parallel()
	url := base64.RawURLEncoding
	join := jwt(url, `{"sub":"t$`+id+`"}`)
	tests := map[string]struct {
		session, join string
		want          bool
		err           string
	}{
		"same":            {jwt(url, `{"parent":"`+id+`","sub":"x"}`), join, true, ""},
		"spec's example":  {"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJwYXJlbnQiOiI3YzFlMDAwOS01MmY0LTRhNmItOWIwZC0zZThmNmEyMTAwNGYifQ.c2lnbmF0dXJl", join, true, ""},
		"padding":         {jwt(base64.StdEncoding, `{"parent":"`+id+`"} `), join, true, ""},
		"both alphabets":  {jwt(url, `{"x":"??>>~~ÿþ","parent":"`+id+`"}`), jwt(base64.StdEncoding, `{"x":"??>>~~ÿþ","sub":"t$`+id+`"}`), true, ""},
		"line break":      {strings.Replace(jwt(url, `{"parent":"`+id+`"}`), ".eyJ", ".ey\nJ", 1), join, true, ""},
		"no signature":    {"e30." + url.EncodeToString([]byte(`{"parent":"`+id+`"}`)), join, true, ""},
		"other":           {jwt(url, `{"parent":"other"}`), join, false, ""},
		"opaque session":  {"pretend-jwt", join, false, "session token: not a JWT"},
		"opaque join":     {jwt(url, `{"parent":"other"}`), "pretend-jwt", false, "cluster join token: not a JWT"},
		"no parent":       {jwt(url, `{"sub":"x"}`), join, false, "session token: no claim parent"},
		"null parent":     {jwt(url, `{"parent":null}`), join, false, "session token: no claim parent"},
		"no sub":          {jwt(url, `{"parent":"x"}`), jwt(url, `{}`), false, "cluster join token: no claim sub"},
		"sub of a user":   {jwt(url, `{"parent":"x"}`), jwt(url, `{"sub":"u$1"}`), false, "cluster join token: claim sub does not start with t$"},
		"number":          {jwt(url, `{"parent":1}`), join, false, "session token: not a JWT: its payload is not the JSON it should be"},
		"half a quantum":  {"a.b.c", join, false, "session token: not a JWT: its payload is no base64"},
		"empty":           {"", join, false, "session token: not a JWT"},
		"payload missing": {"a..c", join, false, "session token: not a JWT: its payload is not the JSON it should be"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := token.Belongs(tt.session, tt.join)
			msg := ""
			if err != nil {
				msg = err.Error()
			}
			if got != tt.want || msg != tt.err {
				t.Errorf("got %v, %q; want %v, %q", got, msg, tt.want, tt.err)
			}
		})
	}
}

func FuzzJoinID(f *testing.F) {
	f.Add(jwt(base64.RawURLEncoding, `{"sub":"t$`+id+`"}`))
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := token.JoinID(s); err != nil && len(s) > 20 && strings.Contains(err.Error(), s) {
			t.Errorf("the error contains the token: %v", err)
		}
	})
}
