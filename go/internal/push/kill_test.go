package push_test

func helper() bool { return false }
