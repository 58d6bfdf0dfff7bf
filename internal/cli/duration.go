package cli

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// duration is a flag: Go's units and, before them, weeks and days of 24 hours, as in 1w2d12h.
type duration time.Duration

// Set implements pflag.Value.
func (d *duration) Set(s string) error {
	parsed, err := parseDuration(s)
	*d = duration(parsed)
	return err
}

// Type implements pflag.Value.
func (*duration) Type() string { return "duration" }

// String implements pflag.Value; a flag's help shows no default where it is empty.
func (d *duration) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

var errDuration = errors.New("not a duration, such as 30d, 12h or 90m (units: w, d, h, m, s)")

func parseDuration(s string) (time.Duration, error) {
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
