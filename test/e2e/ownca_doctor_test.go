package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// doctor asks the server, and runs the ENC as Puppet's user, as it would on the server's host. Its
// findings on this machine's own Puppet, which is not the lab's, are no matter here.
func (s *ownCA) doctor(t *testing.T) {
	r := s.espm.try(t, "doctor", "--config", filepath.Join(s.Dir, "espm.yaml"), "-o", "json")
	var findings []struct{ Check, Severity, What, Mend string }
	if err := json.Unmarshal([]byte(r.stdout), &findings); err != nil {
		t.Fatalf("exit %d: %v\n%s%s", r.code, err, r.stdout, r.stderr)
	}
	want := map[string]string{"configuration": "espm.yaml", "daemon": "it answers", "enc": "it answers as puppet", "authority": "Puppet Server's CA ", "disk": "room"}
	for _, f := range findings {
		text, asked := want[f.Check]
		if asked && (f.Severity != "ok" || !strings.Contains(f.What, text)) {
			t.Errorf("%+v", f)
		}
		delete(want, f.Check)
	}
	for check := range want {
		t.Errorf("no finding of %s: %s", check, r.stdout)
	}
}
