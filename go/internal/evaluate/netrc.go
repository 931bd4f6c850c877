package evaluate

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	secureDir   = "secure"
	netrcPrefix = "tmp-netrc"
	netrcSuffix = ".key"
	maxNetrc    = 1 << 20
)

// netrcFiles hold the credentials of one task: agent behaviour, section 5.4.
type netrcFiles struct {
	path string
	// store has the same for git, in the form of its credential-store helper: git's helper for netrc files is not
	// part of most installations of git.
	store string
}

func (n *netrcFiles) remove() {
	_ = os.Remove(n.path)
	_ = os.Remove(n.store)
}

// login is an entry of a netrc file.
type login struct{ machine, user, password string }

// writeNetrc makes the files. The operator's own entries come first and so win.
func (r *run) writeNetrc() (*netrcFiles, error) {
	var text strings.Builder
	if r.deps.NetrcFile != "" {
		b, err := os.ReadFile(r.deps.NetrcFile)
		switch {
		case err == nil && len(b) <= maxNetrc:
			text.Write(b)
			if len(b) > 0 && b[len(b)-1] != '\n' {
				text.WriteByte('\n')
			}
		case err == nil:
			return nil, fmt.Errorf("the netrc file %s is too large", r.deps.NetrcFile)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("reading the netrc file: %w", err)
		}
	}
	for _, line := range r.deps.NetrcLines {
		text.WriteString(line + "\n")
	}
	logins := parseNetrc(text.String())
	if r.task.ExtraGitCredentials != nil {
		for _, c := range *r.task.ExtraGitCredentials {
			u, err := url.Parse(c.URL)
			if err != nil || u.Hostname() == "" {
				continue
			}
			if strings.ContainsAny(c.Username+c.Password+u.Hostname(), " \t\r\n\x00") || c.Username == "" || c.Password == "" {
				r.warn("a git credential for " + strconv.Quote(u.Hostname()) + " has characters that a netrc file cannot hold; it is not used")
				continue
			}
			fmt.Fprintf(&text, "machine %s\nlogin %s\npassword %s\n", u.Hostname(), c.Username, c.Password)
			logins = append(logins, login{u.Hostname(), c.Username, c.Password})
			if u.Port() != "" {
				logins = append(logins, login{u.Host, c.Username, c.Password})
			}
		}
	}
	var store strings.Builder
	for _, l := range logins {
		u := url.URL{Scheme: "https", Host: l.machine, User: url.UserPassword(l.user, l.password)}
		store.WriteString(u.String() + "\n")
	}

	dir := filepath.Join(r.deps.WorkDirectory, secureDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, err
	}
	n := &netrcFiles{}
	for _, f := range []struct {
		path *string
		name string
		text string
	}{{&n.path, netrcPrefix + "*" + netrcSuffix, text.String()}, {&n.store, netrcPrefix + "*.git" + netrcSuffix, store.String()}} {
		path, err := writePrivate(dir, f.name, f.text)
		if err != nil {
			n.remove()
			return nil, fmt.Errorf("writing the task's credentials: %w", err)
		}
		*f.path = path
	}
	return n, nil
}

func writePrivate(dir, name, text string) (string, error) {
	f, err := os.CreateTemp(dir, name) // mode 0600
	if err != nil {
		return "", err
	}
	if _, err = f.WriteString(text); err == nil {
		err = f.Close()
	} else {
		f.Close()
	}
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return filepath.Abs(f.Name())
}

// parseNetrc reads the entries of a netrc file that name a machine. Macros are not understood, and end the reading.
func parseNetrc(text string) []login {
	var all []login
	var cur *login
	words := strings.Fields(text)
	for i := 0; i < len(words); i++ {
		value := ""
		if i+1 < len(words) {
			value = words[i+1]
		}
		switch words[i] {
		case "machine":
			all = append(all, login{machine: value})
			cur = &all[len(all)-1]
		case "default", "macdef":
			cur = nil
			if words[i] == "macdef" {
				i = len(words)
			}
			continue
		case "login":
			if cur != nil {
				cur.user = value
			}
		case "password":
			if cur != nil {
				cur.password = value
			}
		case "account":
		default:
			continue
		}
		i++
	}
	n := 0
	for _, l := range all {
		if l.machine != "" && l.user != "" && l.password != "" {
			all[n] = l
			n++
		}
	}
	return all[:n]
}

// gitEnvironment configures the git that evaluators run: agent behaviour, section 3.5.
func (n *netrcFiles) gitEnvironment() []string {
	config := [][2]string{
		{"credential.helper", ""}, // forgets the helpers of the user's own configuration
		{"credential.helper", "store --file " + shellQuote(n.store)},
		{"protocol.allow", "never"},
		{"protocol.https.allow", "always"},
		{"protocol.ssh.allow", "always"},
		{"protocol.file.allow", "always"},
	}
	env := []string{"GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_COUNT=" + strconv.Itoa(len(config))}
	for i, kv := range config {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	return env
}

// shellQuote: git runs a helper with arguments through the shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
