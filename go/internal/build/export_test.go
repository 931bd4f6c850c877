package build

// Authentic is for tests.
var Authentic = authentic
