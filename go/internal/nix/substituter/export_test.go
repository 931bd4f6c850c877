package substituter

// FindNetrc is for tests.
var FindNetrc = findNetrc
