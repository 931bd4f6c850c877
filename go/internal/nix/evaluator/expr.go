package evaluator

import (
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// String writes s as a Nix expression in printable ASCII. Line editing in the repl eats other characters, and
// Nix strings have no escape for them, so these go through JSON.
func String(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("%q is not UTF-8", s)
	}
	if strings.IndexByte(s, 0) >= 0 {
		return "", fmt.Errorf("%q has a NUL, which Nix strings can't have", s)
	}
	if strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0 {
		return quote(s), nil
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r >= ' ' && r <= '~':
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
	return "(builtins.fromJSON " + quote(b.String()) + ")", nil
}

// Strings writes a list of strings as a Nix expression.
func Strings(list []string) (string, error) {
	var b strings.Builder
	b.WriteByte('[')
	for _, s := range list {
		e, err := String(s)
		if err != nil {
			return "", err
		}
		b.WriteString(" " + e)
	}
	b.WriteString(" ]")
	return b.String(), nil
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`).Replace(s) + `"`
}
