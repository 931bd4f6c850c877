package codec

import (
	"strings"
	"time"
)

// AppendTime appends t as the protocol writes times: UTC, fraction without trailing zeros.
func AppendTime(b []byte, t time.Time) ([]byte, error) {
	t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		return nil, errorf("the year %d has no encoding", y)
	}
	b = append(b, '"')
	b = t.AppendFormat(b, time.RFC3339Nano)
	return append(b, '"'), nil
}

// parseTime reads the forms of section 0: T or one space, optional seconds, up to 12 digits of fraction of
// which 9 are kept, and a zone Z, +HH:MM or +HHMM that must be there.
func parseTime(s string) (time.Time, error) {
	fail := func() (time.Time, error) { return time.Time{}, errorf("not a time with a zone") }
	date, clock, ok := strings.Cut(strings.Replace(s, "T", " ", 1), " ")
	if !ok {
		return fail()
	}
	zone := strings.IndexAny(clock, "Z+-")
	if zone < 0 {
		return fail()
	}
	clock, offset := clock[:zone], clock[zone:]
	if len(offset) == 5 { // +HHMM
		offset = offset[:3] + ":" + offset[3:]
	}
	clock, fraction, dotted := strings.Cut(clock, ".")
	switch len(clock) {
	case len("15:04"):
		if dotted {
			return fail()
		}
		clock += ":00"
	case len("15:04:05"):
	default:
		return fail()
	}
	if len(fraction) > 12 || strings.Trim(fraction, "0123456789") != "" {
		return fail()
	}
	if len(fraction) > 9 {
		fraction = fraction[:9]
	}
	if fraction != "" {
		clock += "." + fraction
	}
	t, err := time.Parse(time.RFC3339Nano, date+"T"+clock+offset)
	if err != nil {
		return fail()
	}
	return t.UTC(), nil
}

// Time reads a time.
func (d *Decoder) Time() (time.Time, error) {
	s, err := d.String()
	if err != nil {
		return time.Time{}, err
	}
	return parseTime(s)
}
