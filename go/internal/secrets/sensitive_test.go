package secrets_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"hercules/internal/secrets"
)

func TestSensitiveIsNeverPrinted(t *testing.T) {
	t.Parallel()
	const text = "hunter2"
	s := secrets.NewSensitive(text)
	type visible struct{ S secrets.Sensitive }
	type hidden struct{ s secrets.Sensitive }
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "% x", "%T"} {
		for _, v := range []any{s, &s, visible{s}, hidden{s}, &hidden{s}, []secrets.Sensitive{s}, map[string]any{"k": s}} {
			if got := fmt.Sprintf(verb, v); strings.Contains(got, text) || strings.Contains(got, fmt.Sprintf("%x", text)) {
				t.Errorf("%s of %T shows the secret: %s", verb, v, got)
			}
		}
	}
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("m", "s", s, "in", visible{s}, "any", any(&s))
	}
	j, err := json.Marshal(map[string]any{"s": s, "v": visible{s}})
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []string{log.String(), string(j), fmt.Sprint(fmt.Errorf("e: %v", s))} {
		if strings.Contains(got, text) || !strings.Contains(got, "[redacted]") {
			t.Errorf("got %s", got)
		}
	}
	if s.Reveal() != text || s.Empty() || !s.Equal(secrets.NewSensitive(text)) || s.Equal(secrets.NewSensitive("x")) {
		t.Error("the secret itself is wrong")
	}
	var zero, decoded secrets.Sensitive
	if !zero.Empty() || zero.Reveal() != "" {
		t.Error("the zero value is not empty")
	}
	if err := json.Unmarshal([]byte(`"hunter2"`), &decoded); err != nil || !decoded.Equal(s) {
		t.Errorf("decoded %q, %v", decoded.Reveal(), err)
	}
}
