package node

import (
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for s, want := range map[string]time.Duration{
		"30d":                   30 * day,
		"2w":                    14 * day,
		"1w2d12h":               9*day + 12*time.Hour,
		"1d30m":                 day + 30*time.Minute,
		"90m":                   90 * time.Minute,
		"1h30m0.5s":             90*time.Minute + 500*time.Millisecond,
		"0":                     0,
		"0d":                    0,
		"-1d1h":                 -25 * time.Hour,
		"15250w1d":              (15250*7 + 1) * day,
		"9223372036854775807ns": 1<<63 - 1,
	} {
		if got, err := ParseDuration(s); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "-", "d", "30", "1d2w", "1.5d", "1d-1h", "1d+1h", "--1d", "+1d", "1d1d", "1 d", "15251w", "15250w2d",
		"99999999999999999999d", "106751d24h", "1y", "1D", "1d 1h"} {
		if got, err := ParseDuration(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, got)
		}
	}
}

func TestDurationString(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 400 * 24 * time.Hour: "400d", 36 * time.Hour: "1d12h", 90 * time.Minute: "1h30m", 30 * time.Second: "30s",
		1500 * time.Millisecond: "1.5s", 24*time.Hour + 250*time.Millisecond: "1d250ms", -time.Hour: "-1h", -1 << 63: "-2562047h47m16.854775808s",
	} {
		if got := Duration(d).String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// Whatever Go takes means the same here, and what is printed can be given again.
func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"1w2d12h", "-3d", "1.5h", "0", "1d1", "999999w9d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseDuration(s)
		if known, knownErr := time.ParseDuration(s); knownErr == nil && s[0] != '+' && known != -1<<63 && (err != nil || got != known) {
			t.Errorf("%q: got %v, %v, want %v", s, got, err, known)
		}
		if err != nil {
			return
		}
		again, err := ParseDuration(Duration(got).String())
		if err != nil || again != got {
			t.Errorf("%q: %v comes back as %v, %v", s, got, again, err)
		}
	})
}
