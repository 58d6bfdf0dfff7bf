package testbed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Puppet puts a command puppet first in PATH. The command logs its arguments.
func Puppet(t testing.TB, script string) (calls func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	text := "#!/bin/sh\necho \"$*\" >>'" + log + "'\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "puppet"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() string {
		b, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(b)
	}
}

const answers = `cat <<END
Warning: what other versions print first
hostcert = /ssl/certs/puppet.test.pem
hostprivkey = /ssl/private_keys/puppet.test.pem
localcacert = /ssl/certs/ca.pem
certname = puppet.test
serverport = 8140
ca_server = ca.test
ca_port = 8141
cacert = %CACERT%
config = /etc/puppet/puppet.conf
group = no-such-group
node_terminus = %TERMINUS%
external_nodes = %ENC%
END`

// PuppetAnswers is a script that answers like a server's Puppet: the path of the CA certificate, the terminus and the ENC.
func PuppetAnswers(cacert, terminus, enc string) string {
	return strings.NewReplacer("%CACERT%", cacert, "%TERMINUS%", terminus, "%ENC%", enc).Replace(answers)
}
