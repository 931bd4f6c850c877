package socket_test

import (
	"testing"

	"hercules/internal/wire/socket"
)

func TestURL(t *testing.T) {
	t.Parallel()
	for base, want := range map[string]string{
		"https://ci.acme.example":              "https://ci.acme.example/api/v1/logs/build/socket",
		"https://logs.ci.acme.example/ingest/": "https://logs.ci.acme.example/ingest/api/v1/logs/build/socket",
		"http://x:8080//?a=b&c=%2F":            "http://x:8080/api/v1/logs/build/socket?a=b&c=%2F",
		"http://x/a%2Fb":                       "http://x/a%2Fb/api/v1/logs/build/socket",
		"http://[::1]:80":                      "http://[::1]:80/api/v1/logs/build/socket",
		"wss://x":                              "",
		"x":                                    "",
		"http://":                              "",
		"":                                     "",
	} {
		got, err := socket.URL(base, socket.LogPath)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %s, %v, want %s", base, got, err, want)
		}
	}
}
