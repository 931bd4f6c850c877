// Package socket is the reliable websocket of the agent protocol (section 3), both ends of it: numbered
// messages that are kept until acknowledged, sent again after a reconnect and delivered exactly once and in
// order, as long as one process of each end lives.
//
//   - [Agent] is the end that connects, again and again.
//   - [Server] is the end that accepts. Its state for a peer survives connections.
//
// Both are generic over the payloads: the agent socket carries AgentPayload and ServicePayload, a log socket
// LogMessage and ServiceInfo. The package must not know what payloads mean.
package socket

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Times are the time limits of section 3.5. Zero values stand for those.
type Times struct {
	// Handshake limits connecting, upgrade and handshake together: 30 s.
	Handshake time.Duration
	// Receive limits the wait for a frame: 60 s for an agent, 120 s for a server. Websocket pings do not count.
	Receive time.Duration
	// Ack limits the time without progress while messages are not acknowledged: 60 s.
	Ack time.Duration
	// Reconnect is the pause of an agent before it connects again: 10 s. There is none after a missing ack.
	Reconnect time.Duration
	// KeepAlive is how often an agent says that it lives: 30 s.
	KeepAlive time.Duration
}

func (t Times) orDefault(receive time.Duration) Times {
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{
		{&t.Handshake, 30 * time.Second},
		{&t.Receive, receive},
		{&t.Ack, 60 * time.Second},
		{&t.Reconnect, 10 * time.Second},
		{&t.KeepAlive, 30 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.or
		}
	}
	return t
}

var (
	// ErrClosed is returned for messages after Close.
	ErrClosed = errors.New("the socket is closed")
	// ErrReplaced ends a server's connection when its peer has made a new one.
	ErrReplaced = errors.New("replaced by a newer connection of the same peer")
	// ErrNoAck ends a connection whose other side reads but does not acknowledge.
	ErrNoAck = errors.New("the other side does not acknowledge")
	// ErrSilent ends a connection over which nothing comes.
	ErrSilent = errors.New("nothing was received for too long")
)

// RefusedError says that the other side did not upgrade the connection to a websocket.
type RefusedError struct {
	// URL of the socket, without query.
	URL string
	// Status is the HTTP status of the answer.
	Status int
	// Body is the start of the answer.
	Body string
}

func (e *RefusedError) Error() string {
	msg := fmt.Sprintf("connecting to %s: %d %s", e.URL, e.Status, http.StatusText(e.Status))
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		msg += " (the token was refused)"
	case http.StatusNotFound:
		msg += " (no such socket there; is the URL right?)"
	}
	if e.Body != "" {
		msg += fmt.Sprintf(": %q", e.Body)
	}
	return msg
}

// ExceptionError is an Exception frame of the other side.
type ExceptionError struct {
	// Message is for people.
	Message string
}

func (e *ExceptionError) Error() string { return fmt.Sprintf("the other side says: %s", e.Message) }
