package secrets

import "maps"

// FieldNames are the keys of entries of binary-caches.json.
func FieldNames() []string {
	var names []string
	for name := range maps.Keys(fields) {
		names = append(names, name)
	}
	return names
}
