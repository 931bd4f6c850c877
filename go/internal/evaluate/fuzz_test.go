package evaluate

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

func narOf(contents string) []byte {
	var b []byte
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents", contents, ")"} {
		b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
		b = append(b, make([]byte, -len(s)&7)...)
	}
	return b
}

func FuzzFileOfNAR(f *testing.F) {
	f.Add([]byte("Derive([],[],[])"))
	f.Add([]byte{})
	f.Add(narOf("12345678"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := fileOfNAR(narOf(string(b)))
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("got %q, %v, want %q", got, err, b)
		}
		_, _ = fileOfNAR(b)
		if n := narOf(string(b)); len(b) > 8 {
			if _, err := fileOfNAR(n[:len(n)-16-len(b)]); err == nil {
				t.Error("a truncated archive was accepted")
			}
		}
	})
}

func FuzzParseNetrc(f *testing.F) {
	f.Add("machine a login b password c\ndefault login d password e\nmachine f\naccount x login g password h\nmacdef init\nmachine i login j password k")
	f.Add("machine")
	f.Add("password login machine machine")
	f.Fuzz(func(t *testing.T, text string) {
		for _, l := range parseNetrc(text) {
			for _, s := range []string{l.machine, l.user, l.password} {
				if s == "" || len(strings.Fields(s)) != 1 {
					t.Errorf("got %q from %q", l, text)
				}
			}
		}
	})
}

func TestParseNetrc(t *testing.T) {
	t.Parallel()
	got := parseNetrc("machine a login b password c default login d password e machine f account x login g password h machine no-password login x macdef init machine i login j password k")
	if len(got) != 2 || got[0] != (login{"a", "b", "c"}) || got[1] != (login{"f", "g", "h"}) {
		t.Errorf("got %v", got)
	}
}
