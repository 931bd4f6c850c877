package logging

import (
	"regexp"
	"strings"
)

var (
	// Passwords and user names of URLs: https://user:password@host/.
	urlCredentials = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#"'<>]*@`)
	// The value of an Authorization header, however it was printed.
	bearer = regexp.MustCompile(`(?i)\b(bearer|authorization\W{1,4}basic)\s+[A-Za-z0-9+/_.~=-]{6,}`)
	// A JSON web token: what the join token and the session key are.
	jwt = regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{6,}(\.[A-Za-z0-9_-]*){0,2}`)
)

// Redact cuts out what looks like a credential: the user part of URLs, authorization headers, JSON web tokens. It is
// the last net below secrets.Sensitive, for texts that come from elsewhere, such as errors of HTTP. The log lines of
// this package have been through it.
func Redact(s string) string {
	if strings.Contains(s, "://") && strings.Contains(s, "@") {
		s = urlCredentials.ReplaceAllString(s, "${1}[redacted]@")
	}
	if strings.Contains(s, "eyJ") {
		s = jwt.ReplaceAllString(s, "[redacted]")
	}
	if strings.ContainsAny(s, "bB") && bearer.MatchString(s) {
		s = bearer.ReplaceAllString(s, "${1} [redacted]")
	}
	return s
}
