package secret

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"go.yaml.in/yaml/v3"
)

type bundle struct{ Key Text }

type keeper struct {
	key  Text
	many map[string]Text
	list []Text
}

// It is never printed, whoever tries, and however deep it lies.
func TestNeverShown(t *testing.T) {
	text := New([]byte("hush"))
	b, k := bundle{text}, keeper{text, map[string]Text{"k": text}, []Text{text}}
	var out []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%c", "%08b", "%U"} {
		for _, v := range []any{text, &text, b, &b, k, &k, []Text{text}, map[string]Text{"k": text}, fmt.Errorf("wrapped: %v", text)} {
			out = append(out, fmt.Sprintf(verb, v))
		}
	}
	for _, f := range []logrus.Formatter{&logrus.TextFormatter{}, &logrus.JSONFormatter{}} {
		var log strings.Builder
		l := logrus.New()
		l.SetOutput(&log)
		l.SetFormatter(f)
		l.WithFields(logrus.Fields{"key": text, "bundle": b, "keeper": k, "pointer": &text}).Error(text, b, k)
		out = append(out, log.String())
	}
	for _, marshal := range []func(any) ([]byte, error){json.Marshal, yaml.Marshal} {
		for _, v := range []any{text, &text, b, k, map[string]any{"k": text}} {
			encoded, err := marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(encoded))
		}
	}
	out = append(out, fmt.Sprint(text), fmt.Sprintln(b), text.String(), text.GoString())
	for _, shown := range out {
		for _, leak := range []string{"hush", "68757368", "aHVzaA", "104 117", "0x68,", "01101000 ", "U+0068"} {
			if strings.Contains(shown, leak) {
				t.Errorf("%q has %q", shown, leak)
			}
		}
	}
	if got := fmt.Sprintf("%s %d %#v", text, text, text); got != "[redacted] [redacted] [redacted]" {
		t.Errorf("got %q", got)
	}
}

func TestBytes(t *testing.T) {
	if got := New([]byte("hush")); string(got.Bytes()) != "hush" || got.IsZero() {
		t.Errorf("got %q", got.Bytes())
	}
	for _, none := range []Text{{}, New(nil)} {
		if none.Bytes() != nil || !none.IsZero() {
			t.Errorf("got %q, want none", none.Bytes())
		}
	}
}
