package agentapi

// Frame is what travels in one message of a socket; P is the payload type of its direction (section 3.2).
type Frame[P any] struct {
	Msg       *FrameMsg[P]    `sum:",inline"`
	Oob       *FrameOob[P]    `sum:",inline"`
	Ack       *FrameAck       `sum:",inline"`
	Exception *FrameException `sum:",inline"`
}

// FrameMsg is a numbered payload, which is acknowledged and sent again until it is.
type FrameMsg[P any] struct {
	N int64 `json:"n"`
	P P     `json:"p"`
}

// FrameOob is a payload without number: the handshake.
type FrameOob[P any] struct {
	O P `json:"o"`
}

// FrameAck acknowledges a message of the opposite direction.
type FrameAck struct {
	N int64 `json:"n"`
}

// FrameException is an error for people.
type FrameException struct {
	Message string `json:"message"`
}
