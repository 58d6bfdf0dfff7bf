package rpc

import (
	"errors"
	"testing"

	"github.com/espm-project/espm/internal/node"
)

// A page token is refused as the caller's fault, or leads to a place in the list that it
// was given for, and in no other. Seeds: testdata/fuzz.
func FuzzPageToken(f *testing.F) {
	f.Fuzz(func(t *testing.T, list, token string) {
		after, err := parsePageToken(list, token)
		if err != nil {
			if !errors.Is(err, node.ErrInvalid) {
				t.Errorf("error %v is not the caller's", err)
			}
		} else if again, err := parsePageToken(list, pageToken(list, after)); err != nil || again != after {
			t.Errorf("leads to %q, then to %q, %v", after, again, err)
		}
		if token == "" {
			return
		}
		given := pageToken(list, token) // what a server gives where a page ends at that key
		if back, err := parsePageToken(list, given); err != nil || back != token {
			t.Errorf("%q became %q, %v", token, back, err)
		}
		if _, err := parsePageToken(list+"x", given); !errors.Is(err, node.ErrInvalid) {
			t.Errorf("taken for another list: %v", err)
		}
	})
}
