package watch

// Chain is for tests.
var Chain = chain
