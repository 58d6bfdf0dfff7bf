package node

import (
	"testing"
	"time"
)

func TestCredentialEnding(t *testing.T) {
	const day = 24 * time.Hour
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		life, at      time.Duration
		ending, ended bool
	}{
		{5 * 365 * day, 0, false, false},
		{5 * 365 * day, 5*365*day - 31*day, false, false},
		{5 * 365 * day, 5*365*day - 30*day, true, false},
		{5 * 365 * day, 5 * 365 * day, true, true},
		{10 * day, 7 * day, false, false},
		{10 * day, 8 * day, true, false},
		{10 * day, 11 * day, true, true},
	} {
		c := Credential{Kind: BearerToken, Name: "ci", NotBefore: begin, NotAfter: begin.Add(test.life)}
		if got := c.Ending(begin.Add(test.at)); got != test.ending {
			t.Errorf("of %v, after %v: ending %v", test.life, test.at, got)
		}
		if got := c.Ended(begin.Add(test.at)); got != test.ended {
			t.Errorf("of %v, after %v: ended %v", test.life, test.at, got)
		}
	}
	c := Credential{Kind: BearerToken, Name: "ci", NotAfter: begin}
	if got := c.Trouble(begin.Add(-1)); got != "the token ci ends at 2026-01-01T00:00:00Z" {
		t.Errorf("got %q", got)
	}
	if got := c.Trouble(begin); got != "the token ci ended at 2026-01-01T00:00:00Z" {
		t.Errorf("got %q", got)
	}
}
