package encclient

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/enc"
)

// Whatever stands behind the socket, espm-enc takes a whole frame or says that it is none; it
// holds no more in memory than was sent. Seeds: testdata/fuzz.
func FuzzReceive(f *testing.F) {
	f.Fuzz(func(t *testing.T, sent []byte) {
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(pair[0])
		sent = sent[:min(len(sent), 64<<10)] // as much as the socket holds
		if _, err := syscall.Write(pair[1], sent); err != nil {
			t.Fatal(err)
		}
		syscall.Close(pair[1])
		a, err := conn{pair[0], time.Now().Add(10 * time.Second)}.receive()
		if err != nil {
			if errors.Is(err, syscall.EAGAIN) {
				t.Errorf("%q: waited for what does not come", sent)
			}
			return
		}
		head := fmt.Sprintf("%c %08x\n", a.Status, len(a.Text)) // digits above 9 may be upper case
		if !strings.EqualFold(string(sent[:len(head)]), head) || !strings.HasPrefix(string(sent[len(head):]), a.Text) {
			t.Errorf("%q was read as %q", sent, head+a.Text)
		}
		if a.Status == enc.StatusYAML && len(a.Text) > len(sent) {
			t.Errorf("%d bytes of %d", len(a.Text), len(sent))
		}
	})
}
