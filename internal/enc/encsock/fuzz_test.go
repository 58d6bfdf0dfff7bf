package encsock

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/enc"
)

// Whatever is sent, the answer is one frame whose length is right, or none where the
// question does not end; and only a certname is ever looked up. Seeds: testdata/fuzz.
func FuzzFrame(f *testing.F) {
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	server := &Server{Source: newStore(f), Unknown: enc.Unknown{Policy: enc.Fail}, Sightings: &sightings{}, Log: silent}
	f.Fuzz(func(t *testing.T, question []byte) {
		ours, theirs := net.Pipe()
		go func() {
			defer ours.Close()
			_ = server.answer(t.Context(), ours)
		}()
		go func() {
			_, _ = theirs.Write(append(question, '\n'))
		}()
		frame, err := io.ReadAll(theirs)
		theirs.Close()
		if err != nil {
			t.Fatal(err)
		}
		if err := checkFrame(string(frame)); err != nil {
			t.Errorf("asked %q: %v", question, err)
		}
		name, _, _ := strings.Cut(string(question), "\n")
		if known := name == "web01" || name == "?web01" || name == "!web01"; (frame[0] == byte(enc.StatusYAML)) != known {
			t.Errorf("asked %q, answered %q", question, frame)
		}
	})
}

// checkFrame reads what the package's comment promises.
func checkFrame(frame string) error {
	if len(frame) < 11 || !strings.Contains("YFC", frame[:1]) || frame[1] != ' ' || frame[10] != '\n' {
		return fmt.Errorf("%q is no frame", frame)
	}
	size, err := strconv.ParseUint(frame[2:10], 16, 32)
	if err != nil || int(size) != len(frame)-11 {
		return fmt.Errorf("frame says %d bytes (%v), has %d: %q", size, err, len(frame)-11, frame)
	}
	if frame[0] == byte(enc.StatusFail) && strings.ContainsAny(frame[11:], "\n\x00") {
		return fmt.Errorf("the reason is no line: %q", frame)
	}
	return nil
}
