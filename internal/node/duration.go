package node

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a time span as people write it: Go's units and, before them, weeks and days of 24
// hours, as in 1w2d12h. It is a flag.
type Duration time.Duration

// Set implements pflag.Value.
func (d *Duration) Set(s string) error {
	parsed, err := ParseDuration(s)
	*d = Duration(parsed)
	return err
}

// Type implements pflag.Value.
func (*Duration) Type() string { return "duration" }

// String returns the form that Set reads, such as 400d or 1d12h30m.
func (d Duration) String() string {
	left := time.Duration(d)
	if left == math.MinInt64 {
		return left.String() // the smallest int64 has no positive counterpart
	}
	sign := ""
	if left < 0 {
		sign, left = "-", -left
	}
	var b strings.Builder
	for _, unit := range []struct {
		name string
		size time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}} {
		if n := left / unit.size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, unit.name)
			left -= n * unit.size
		}
	}
	if left > 0 || b.Len() == 0 {
		b.WriteString(left.String())
	}
	return sign + b.String()
}

var errDuration = errors.New("not a duration, such as 30d, 12h or 90m (units: w, d, h, m, s)")

// ParseDuration reads the forms of Duration.String and of time.ParseDuration, except a sign "+".
func ParseDuration(s string) (time.Duration, error) {
	rest, negative := strings.CutPrefix(s, "-")
	var sum time.Duration
	for _, unit := range []struct {
		name string
		size time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		count, after, found := strings.Cut(rest, unit.name)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(count, 10, 63)
		if err != nil || n > uint64((math.MaxInt64-sum)/unit.size) { // #nosec G115 -- sum is at most MaxInt64
			return 0, errDuration
		}
		sum, rest = sum+time.Duration(n)*unit.size, after
	}
	if rest != "" || sum == 0 && !strings.ContainsAny(s, "wd") {
		small, err := time.ParseDuration(rest)
		if err != nil || strings.ContainsAny(rest[:1], "+-") || small > math.MaxInt64-sum {
			return 0, errDuration
		}
		sum += small
	}
	if negative {
		sum = -sum
	}
	return sum, nil
}
