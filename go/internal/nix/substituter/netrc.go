package substituter

import (
	"net/url"
	"strings"
)

// findNetrc gives the credentials that the text of a netrc file has for a host: those of its machine entry, else
// those of default.
func findNetrc(text, host string) *url.Userinfo {
	words := netrcWords(text)
	var fallback *url.Userinfo
	for i := 0; i < len(words); {
		word := words[i]
		i++
		isDefault := word == "default"
		machine := ""
		if word == "machine" && i < len(words) {
			machine = words[i]
			i++
		} else if !isDefault {
			continue
		}
		login, password, set := "", "", false
		for ; i+1 < len(words); i += 2 {
			switch words[i] {
			case "login":
				login, set = words[i+1], true
				continue
			case "password":
				password, set = words[i+1], true
				continue
			case "account":
				continue
			}
			break
		}
		user := url.UserPassword(login, password)
		switch {
		case !set:
		case !isDefault && strings.EqualFold(machine, host):
			return user
		case isDefault && fallback == nil:
			fallback = user
		}
	}
	return fallback
}

// netrcWords splits a netrc file. A word may be quoted; a line that begins with # is a comment; a macro goes up to
// the next empty line.
func netrcWords(text string) []string {
	var words []string
	macro := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if macro {
			macro = line != ""
			continue
		}
		for line != "" && line[0] != '#' {
			var word string
			word, line = netrcWord(line)
			if word == "macdef" {
				macro = true
				break
			}
			words = append(words, word)
			line = strings.TrimLeft(line, " \t")
		}
	}
	return words
}

func netrcWord(line string) (word, rest string) {
	if line[0] != '"' {
		if i := strings.IndexAny(line, " \t"); i >= 0 {
			return line[:i], line[i:]
		}
		return line, ""
	}
	var b strings.Builder
	for i := 1; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			return b.String(), line[i+1:]
		case c == '\\' && i+1 < len(line):
			i++
			b.WriteByte(line[i])
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), ""
}
