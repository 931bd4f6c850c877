package secrets_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hercules/internal/secrets"
)

// The reference page names every key, and its example is good.
func TestReferencePage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "binary-caches.md"))
	if os.IsNotExist(err) {
		t.Skip("SKIP: the documents are not here")
	}
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	_, example, _ := strings.Cut(page, "```json\n")
	example, _, _ = strings.Cut(example, "```")
	caches, err := secrets.ParseBinaryCaches("the example", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if len(caches.Caches) != 3 || len(caches.Warnings) > 0 {
		t.Errorf("the example has %d caches and the warnings %q", len(caches.Caches), caches.Warnings)
	}
	for _, key := range secrets.FieldNames() {
		if !strings.Contains(page, "`"+key+"`") {
			t.Errorf("the page does not name %s", key)
		}
	}
}
