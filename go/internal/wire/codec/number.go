package codec

import "math"

// number reads the text of a number.
func (d *Decoder) number(want string) ([]byte, error) {
	d.space()
	start := d.pos
	i := start
	if i < len(d.b) && d.b[i] == '-' {
		i++
	}
	digits := func() bool {
		n := i
		for i < len(d.b) && '0' <= d.b[i] && d.b[i] <= '9' {
			i++
		}
		return i > n
	}
	first := i
	if !digits() || (d.b[first] == '0' && i > first+1) {
		return nil, d.syntax(want)
	}
	if i < len(d.b) && d.b[i] == '.' {
		i++
		if !digits() {
			return nil, errorf("bad number at byte %d", start)
		}
	}
	if i < len(d.b) && (d.b[i] == 'e' || d.b[i] == 'E') {
		i++
		if i < len(d.b) && (d.b[i] == '+' || d.b[i] == '-') {
			i++
		}
		if !digits() {
			return nil, errorf("bad number at byte %d", start)
		}
	}
	d.pos = i
	return d.b[start:i], nil
}

// integer reads a number without fraction: its sign and magnitude. 7.0 and 7e0 are such numbers.
func (d *Decoder) integer() (neg bool, abs uint64, err error) {
	text, err := d.number("an integer")
	if err != nil {
		return false, 0, err
	}
	if text[0] == '-' {
		neg, text = true, text[1:]
	}
	// Only a short text is surely in range.
	if len(text) < 19 {
		for i, c := range text {
			if c < '0' || c > '9' {
				abs, err = decimal(text)
				return neg, abs, err
			}
			if i == 0 {
				abs = 0
			}
			abs = abs*10 + uint64(c-'0')
		}
		return neg, abs, nil
	}
	abs, err = decimal(text)
	return neg, abs, err
}

// decimal returns the value of a number without sign, which must be whole.
func decimal(text []byte) (uint64, error) {
	var digits []byte
	exp, i := 0, 0
	for ; i < len(text) && text[i] != 'e' && text[i] != 'E'; i++ {
		if text[i] == '.' {
			exp = -(len(text) - i - 1)
			continue
		}
		digits = append(digits, text[i])
	}
	if i < len(text) {
		if exp < 0 {
			exp += len(text) - i // the exponent's own characters are no fraction
		}
		i++
		neg := text[i] == '-'
		if neg || text[i] == '+' {
			i++
		}
		e := 0
		for ; i < len(text); i++ {
			// Section 0: exponents above 1024 are an error.
			if e = e*10 + int(text[i]-'0'); e > 1024 {
				return 0, errorf("the exponent is too large")
			}
		}
		if neg {
			e = -e
		}
		exp += e
	}
	for len(digits) > 0 && digits[len(digits)-1] == '0' {
		digits = digits[:len(digits)-1]
		exp++
	}
	for len(digits) > 0 && digits[0] == '0' {
		digits = digits[1:]
	}
	if len(digits) == 0 {
		return 0, nil
	}
	if exp < 0 {
		return 0, errorf("a fraction where an integer should be")
	}
	if len(digits)+exp > 20 {
		return 0, errorf("the number is out of range")
	}
	var n uint64
	for i := range len(digits) + exp {
		var c uint64
		if i < len(digits) {
			c = uint64(digits[i] - '0')
		}
		if n > (math.MaxUint64-c)/10 {
			return 0, errorf("the number is out of range")
		}
		n = n*10 + c
	}
	return n, nil
}

// Int64 reads a signed integer.
func (d *Decoder) Int64() (int64, error) {
	neg, abs, err := d.integer()
	switch {
	case err != nil:
		return 0, err
	case neg && abs <= 1<<63:
		return -int64(abs), nil //nolint:gosec // -2^63 wraps to itself
	case !neg && abs <= math.MaxInt64:
		return int64(abs), nil
	}
	return 0, errorf("the number is out of range")
}

// Uint64 reads an unsigned integer.
func (d *Decoder) Uint64() (uint64, error) {
	neg, abs, err := d.integer()
	if err == nil && neg && abs != 0 {
		return 0, errorf("a negative number where an unsigned one should be")
	}
	return abs, err
}
