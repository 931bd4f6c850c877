package secrets

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"hercules/internal/formats"
)

// Login is a user and password for a host.
type Login struct {
	Host     string
	User     string
	Password Sensitive
}

// CachixLogins gives the logins of the Cachix caches that have a token.
func (b *BinaryCaches) CachixLogins() []Login {
	var logins []Login
	for _, c := range b.Caches {
		if c.Kind == formats.KindCachixCache && !c.AuthToken.Empty() {
			logins = append(logins, Login{Host: c.host(), User: "authtoken", Password: c.AuthToken})
		}
	}
	return logins
}

// NetrcLine gives the line of a netrc file for a login. A login that netrc cannot express, because it has white space
// or nothing where a word has to be, is an error: it would be read as something else.
func (l Login) NetrcLine() (string, error) {
	for what, word := range map[string]string{"host": l.Host, "user name": l.User, "password": l.Password.Reveal()} {
		if word == "" || strings.ContainsAny(word, " \t\r\n\v\f\x00") {
			return "", fmt.Errorf("login for %q: the %s is empty or has white space in it", l.Host, what)
		}
	}
	return "machine " + l.Host + " login " + l.User + " password " + l.Password.Reveal(), nil
}

// WriteNetrc makes the netrc file of tasks (agent-behaviour §5.4) in dir, for the owner alone: the content of the
// operator's file, and then the logins. The caller removes it.
func WriteNetrc(dir string, operator []byte, logins []Login) (path string, err error) {
	var text strings.Builder
	text.Write(operator)
	if len(operator) > 0 && operator[len(operator)-1] != '\n' {
		text.WriteByte('\n')
	}
	for _, l := range logins {
		line, err := l.NetrcLine()
		if err != nil {
			return "", fmt.Errorf("netrc: %w", err)
		}
		text.WriteString(line + "\n")
	}
	f, err := os.CreateTemp(dir, "tmp-netrc*.key") // mode 0600
	if err != nil {
		return "", fmt.Errorf("netrc: %w", err)
	}
	_, err = f.WriteString(text.String())
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("netrc: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return f.Name(), nil
}
