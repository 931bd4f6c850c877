package agentapi

import (
	"strconv"

	"hercules/internal/wire/codec"
)

// LogEntry and LogField are coded by hand: a build can log 150,000 lines a second.

// logTags are the tags of LogKind.
var logTags = [...]string{LogMsg: "Msg", LogStart: "Start", LogStop: "Stop", LogResult: "Result"}

// String is the kind's tag.
func (k LogKind) String() string {
	if k == 0 || int(k) >= len(logTags) {
		return "LogKind(" + strconv.Itoa(int(k)) + ")"
	}
	return logTags[k]
}

// IntField is a number in a log entry.
func IntField(n uint64) LogField { return LogField{Int: n} }

// TextField is a text in a log entry.
func TextField(s string) LogField { return LogField{IsText: true, Text: s} }

// AppendWire implements codec.Encoder.
func (f *LogField) AppendWire(b []byte) ([]byte, error) {
	if f.IsText {
		return codec.AppendString(b, f.Text), nil
	}
	return strconv.AppendUint(b, f.Int, 10), nil
}

// DecodeWire implements codec.Decodable.
func (f *LogField) DecodeWire(d *codec.Decoder) (err error) {
	if f.IsText = d.Peek() == '"'; f.IsText {
		f.Text, err = d.String()
	} else {
		f.Int, err = d.Uint64()
	}
	return err
}

// AppendWire implements codec.Encoder.
func (e *LogEntry) AppendWire(b []byte) ([]byte, error) {
	if e.Kind == 0 || int(e.Kind) >= len(logTags) {
		return nil, &codec.Error{Msg: "a log entry without kind"}
	}
	b = append(b, `{"tag":"`...)
	b = append(b, logTags[e.Kind]...)
	b = append(b, `","i":`...)
	b = strconv.AppendUint(b, e.I, 10)
	b = append(b, `,"ms":`...)
	b = strconv.AppendUint(b, e.MS, 10)
	if e.Kind != LogMsg {
		b = append(b, `,"act":`...)
		b = strconv.AppendUint(b, e.Act, 10)
	}
	switch e.Kind {
	case LogMsg:
		b = append(b, `,"level":`...)
		b = strconv.AppendInt(b, e.Level, 10)
		b = append(b, `,"msg":`...)
		b = codec.AppendString(b, e.Text)
	case LogStart:
		b = append(b, `,"level":`...)
		b = strconv.AppendInt(b, e.Level, 10)
		b = append(b, `,"typ":`...)
		b = strconv.AppendUint(b, e.Type, 10)
		b = append(b, `,"text":`...)
		b = codec.AppendString(b, e.Text)
		b = e.appendFields(b)
		b = append(b, `,"parent":`...)
		b = strconv.AppendUint(b, e.Parent, 10)
	case LogResult:
		b = append(b, `,"rtype":`...)
		b = strconv.AppendUint(b, e.Type, 10)
		b = e.appendFields(b)
	case LogStop:
	}
	return append(b, '}'), nil
}

func (e *LogEntry) appendFields(b []byte) []byte {
	b = append(b, `,"fields":[`...)
	for i := range e.Fields {
		if i > 0 {
			b = append(b, ',')
		}
		b, _ = e.Fields[i].AppendWire(b) // a field can't fail
	}
	return append(b, ']')
}

// Keys of a log entry, as bits.
const (
	keyTag = 1 << iota
	keyI
	keyMS
	keyAct
	keyLevel
	keyTyp
	keyRType
	keyText
	keyMsg
	keyFields
	keyParent
)

var logKeys = map[string]int{
	"tag": keyTag, "i": keyI, "ms": keyMS, "act": keyAct, "level": keyLevel, "typ": keyTyp, "rtype": keyRType,
	"text": keyText, "msg": keyMsg, "fields": keyFields, "parent": keyParent,
}

// logNeeds are the keys that each kind must have. The others are unknown to it.
var logNeeds = [...]int{
	LogMsg:    keyTag | keyI | keyMS | keyLevel | keyMsg,
	LogStart:  keyTag | keyI | keyMS | keyAct | keyLevel | keyTyp | keyText | keyFields | keyParent,
	LogStop:   keyTag | keyI | keyMS | keyAct,
	LogResult: keyTag | keyI | keyMS | keyAct | keyRType | keyFields,
}

// DecodeWire implements codec.Decodable. A key of another kind of entry must fit, too; nothing sends one.
func (e *LogEntry) DecodeWire(d *codec.Decoder) error {
	*e = LogEntry{}
	var text, msg string
	var typ, rtype uint64
	seen := 0
	err := d.Object(func(k []byte) (err error) {
		key := logKeys[string(k)]
		if key == 0 || seen&key != 0 {
			return d.Skip()
		}
		seen |= key
		switch key {
		case keyTag:
			err = e.decodeKind(d)
		case keyI:
			e.I, err = d.Uint64()
		case keyMS:
			e.MS, err = d.Uint64()
		case keyAct:
			e.Act, err = d.Uint64()
		case keyLevel:
			e.Level, err = d.Int64()
		case keyTyp:
			typ, err = d.Uint64()
		case keyRType:
			rtype, err = d.Uint64()
		case keyText:
			text, err = d.String()
		case keyMsg:
			msg, err = d.String()
		case keyParent:
			e.Parent, err = d.Uint64()
		case keyFields:
			e.Fields = make([]LogField, 0, 4)
			err = d.Array(func(int) error {
				var f LogField
				err := f.DecodeWire(d)
				e.Fields = append(e.Fields, f)
				return err
			})
		}
		if err != nil {
			return codec.Key(string(k), err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if e.Kind == 0 {
		return &codec.Error{Msg: "a log entry without tag"}
	}
	if missing := logNeeds[e.Kind] &^ seen; missing != 0 {
		for name, key := range logKeys {
			if missing&key == missing&-missing {
				return &codec.Error{Msg: "key " + strconv.Quote(name) + " is missing"}
			}
		}
	}
	e.keep(text, msg, typ, rtype)
	return nil
}

func (e *LogEntry) decodeKind(d *codec.Decoder) error {
	tag, err := d.String()
	if err != nil {
		return err
	}
	for k, name := range logTags {
		if k > 0 && name == tag {
			e.Kind = LogKind(k) //nolint:gosec // four kinds
			return nil
		}
	}
	return &codec.Error{Msg: strconv.Quote(tag) + " is no tag of LogEntry"}
}

// keep sets what belongs to the kind and clears what does not.
func (e *LogEntry) keep(text, msg string, typ, rtype uint64) {
	switch e.Kind {
	case LogMsg:
		e.Text = msg
		e.Act, e.Parent, e.Fields = 0, 0, nil
	case LogStart:
		e.Text, e.Type = text, typ
	case LogStop:
		e.Level, e.Parent, e.Fields = 0, 0, nil
	case LogResult:
		e.Type = rtype
		e.Level, e.Parent = 0, 0
	}
}
