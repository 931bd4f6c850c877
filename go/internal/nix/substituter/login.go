package substituter

import "net/url"

// FindLogin gives the credentials that the text of a netrc file has for a host, or nil.
func FindLogin(netrc, host string) *url.Userinfo { return findNetrc(netrc, host) }
