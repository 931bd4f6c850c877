package agentclient

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"time"
)

// Policy says how often a call is repeated (section 2.1). Every failure is repeated, whatever its status.
type Policy int

// The policies.
const (
	// None: one attempt.
	None Policy = iota
	// Quick: 5 attempts within about 85 s.
	Quick
	// Default: 11 attempts within about 7.4 min.
	Default
	// Endless: until it succeeds or the context ends.
	Endless
)

// delays is the number of repetitions, -1 for no limit.
func (p Policy) delays() int {
	switch p {
	case Quick:
		return 4
	case Default:
		return 10
	case Endless:
		return -1
	case None:
	}
	return 0
}

// delay is the pause before repetition n, counted from 1: e^n seconds, at most a minute.
func delay(n int) time.Duration {
	return time.Duration(min(math.Exp(float64(n)), 60) * float64(time.Second))
}

// permanent marks an error that no repetition changes.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Retry calls f until it succeeds, the policy is exhausted or ctx ends. It returns the last error of f, and
// also that of ctx if ctx ended. what names the call in the log.
func Retry(ctx context.Context, policy Policy, log *slog.Logger, what string, f func(context.Context) error) error {
	for n := 1; ; n++ {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if p, ok := errors.AsType[permanent](err); ok {
			return p.error
		}
		if ctx.Err() != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		if limit := policy.delays(); limit >= 0 && n > limit {
			return err
		}
		pause := delay(n)
		if log != nil {
			log.WarnContext(ctx, "request failed, trying again", "request", what, "attempt", n, "delay", pause.Round(time.Millisecond), "error", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(err, context.Cause(ctx))
		}
	}
}
