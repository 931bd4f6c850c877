package localstore

// IsStatic is for tests.
var IsStatic = isStatic
