package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// least is the smallest configuration there is.
const least = `
authority:
  directory:
    path: ca
puppet:
  server: puppet.example.com
`

func TestDefaults(t *testing.T) {
	want := Config{
		Store:     Store{Path: "/var/lib/espm/espm.db"},
		Listen:    "unix:///run/espm/espm.sock",
		ENC:       ENC{Socket: "/run/espm/enc.sock", UnknownNodes: "fail"},
		Authority: Authority{Directory: &Directory{Path: "/etc/espm/ca"}},
		Issue:     Issue{KeyAlgorithm: "ec-p256", KeyPool: new(4)},
		Puppet:    Puppet{Server: "puppet.example.com", Port: 8140, RunInterval: Duration(30 * time.Minute)},
		Audit:     Audit{Keep: Duration(8760 * time.Hour), MaxSizeMiB: 1024},
		Log:       Log{Level: "info", Format: "text"},
	}
	expect(t, least, want)
}

func TestEverySetting(t *testing.T) {
	expect(t, `
store:
  path: /srv/espm.db
listen: unix:///srv/espm.sock
enc:
  socket: /srv/enc.sock
  group: puppet
  unknown_nodes: command
  command: /usr/local/bin/old-enc --all
authority:
  directory:
    path: /srv/ca
    publish: [/etc/puppetlabs/puppet/ssl/crl.pem, crl.pem]
    crl: {validity: 2160h, keep_expired: 168h}
certificates:
  ttl: 720h
  key_algorithm: rsa-2048
  key_pool: 0
puppet:
  server: puppet
  ca_server: ca.example.com
  conf_template: agent.conf
  port: 8141
  run_interval: 2h
protected_certnames: [puppet.example.com, db01]
audit: {keep: 48h, max_size_mib: 5}
log:
  level: debug
  format: json
`, Config{
		Store:  Store{Path: "/srv/espm.db"},
		Listen: "unix:///srv/espm.sock",
		ENC:    ENC{Socket: "/srv/enc.sock", Group: "puppet", UnknownNodes: "command", Command: "/usr/local/bin/old-enc --all"},
		Authority: Authority{Directory: &Directory{
			Path: "/srv/ca", Publish: []string{"/etc/puppetlabs/puppet/ssl/crl.pem", "/etc/espm/crl.pem"},
			CRL: CRL{Validity: Duration(2160 * time.Hour), KeepExpired: Duration(168 * time.Hour)},
		}},
		Issue:     Issue{TTL: Duration(720 * time.Hour), KeyAlgorithm: "rsa-2048", KeyPool: new(0)},
		Puppet:    Puppet{Server: "puppet", Port: 8141, CAServer: "ca.example.com", Template: "/etc/espm/agent.conf", RunInterval: Duration(2 * time.Hour)},
		Protected: []string{"puppet.example.com", "db01"},
		Audit:     Audit{Keep: Duration(48 * time.Hour), MaxSizeMiB: 5},
		Log:       Log{Level: "debug", Format: "json"},
	})
}

// Relative paths are relative to the folder of the file.
func TestRelativePaths(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "espm.yaml")
	text := least + "store: {path: data/espm.db}\nenc: {socket: run/enc.sock}\nlisten: unix://run/espm.sock\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.Store.Path, c.ENC.Socket, c.Listen, c.Authority.Directory.Path}
	want := []string{dir + "/data/espm.db", dir + "/run/enc.sock", "unix://" + dir + "/run/espm.sock", dir + "/ca"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Each entry replaces a section of a sound configuration (or adds one) and
// says how the error begins, after the file's name.
func TestRules(t *testing.T) {
	long := "/" + strings.Repeat("x", 107)
	for _, test := range []struct{ section, want string }{
		{"listen: 0.0.0.0:8443", `listen: "0.0.0.0:8443": must be unix:///PATH; a network address belongs in network.listen`},
		{"listen: tcp://127.0.0.1:8443", `listen: "tcp://127.0.0.1:8443": must be unix:///PATH`},
		{"listen: localhost", `listen: "localhost": must be unix:///PATH`},
		{"listen: unix:/run/espm.sock", `listen: "unix:/run/espm.sock": must be unix:///PATH`},
		{"listen: unix://", `listen: "": a socket's path has 1 to 107 bytes`},
		{"listen: unix://" + long, `listen: "` + long + `": a socket's path has 1 to 107 bytes`},
		{"enc: {socket: " + long + "}", `enc.socket: "` + long + `": a socket's path has 1 to 107 bytes`},
		{"enc: {unknown_nodes: maybe}", `enc.unknown_nodes: one of fail, empty, command, is "maybe"`},
		{"enc: {unknown_nodes: command}", `enc.command: must be an absolute path, and arguments, where enc.unknown_nodes is command; is ""`},
		{"enc: {unknown_nodes: command, command: ' '}", `enc.command: must be an absolute path`},
		{"enc: {unknown_nodes: command, command: old-enc -v}", `enc.command: must be an absolute path`},
		{"metrics: {listen: 9645}", `metrics.listen: "9645": must be ADDRESS:PORT, such as 127.0.0.1:9645`},
		{"metrics: {listen: 'localhost:9645'}", `metrics.listen: "localhost:9645": must be ADDRESS:PORT`},
		{"metrics: {listen: '127.0.0.1:70000'}", `metrics.listen: "127.0.0.1:70000": must be ADDRESS:PORT`},
		{"metrics: {listen: '0.0.0.0:9645'}", `metrics.listen: "0.0.0.0:9645": must be a loopback address`},
		{"metrics: {listen: '[::]:9645'}", `metrics.listen: "[::]:9645": must be a loopback address`},
		{"metrics: {listen: '10.0.0.1:9645'}", `metrics.listen: "10.0.0.1:9645": must be a loopback address`},
		{"enc: {command: /bin/enc}", `enc.command: has a meaning only where enc.unknown_nodes is command`},
		{"authority: {}", `authority: exactly one of directory and puppetserver must be set`},
		{"authority: {directory: {path: ca}, puppetserver: {url: 'https://p:8140'}}", `authority: exactly one`},
		{"authority: {puppetserver: {}}", `authority.puppetserver.url: must be set`},
		{"authority: {puppetserver: {url: 'http://p:8140'}}", `authority.puppetserver.url: "http://p:8140": must be https://HOST:PORT and no more`},
		{"authority: {puppetserver: {url: 'https://p'}}", `authority.puppetserver.url: "https://p": must be https://HOST:PORT`},
		{"authority: {puppetserver: {url: 'https://p:8140/puppet-ca'}}", `authority.puppetserver.url: "https://p:8140/puppet-ca": must be`},
		{"authority: {puppetserver: {url: 'https://p:8140', key: k.pem}}", `authority.puppetserver: certificate and key belong together`},
		{"authority: {directory: {}}", `authority.directory.path: must be set`},
		{"authority: {directory: {path: ''}}", `authority.directory.path: must be set`},
		{"authority: {directory: {path: ca, publish: [a, '']}}", `authority.directory.publish[1]: must not be empty`},
		{"authority: {directory: {path: ca, key: ca_key.pem}}", `authority.directory.key: must be a PKCS #11 URI`},
		{"authority: {directory: {path: ca, key: 'pkcs11:token=a;object=b?pin-value=1'}}", `authority.directory.key: pin-value: is refused`},
		{"authority: {directory: {path: ca, crl: {validity: 71h}}}", `authority.directory.crl.validity: from 3d to 18250d, is 2d23h`},
		{"authority: {directory: {path: ca, crl: {validity: 438001h}}}", `authority.directory.crl.validity: from 3d`},
		{"authority: {directory: {path: ca, crl: {keep_expired: 1h}}}", `authority.directory.crl.keep_expired: from 1d to 18250d, is 1h`},
		{"authority: {directory: {path: ca, crl: {keep_expired: -24h}}}", `authority.directory.crl.keep_expired: from 1d`},
		{"certificates: {ttl: 59s}", `certificates.ttl: from 1m to 18250d, is 59s`},
		{"certificates: {ttl: -1h}", `certificates.ttl: from 1m`},
		{"certificates: {ttl: 438001h}", `certificates.ttl: from 1m`},
		{"certificates: {key_algorithm: dsa}", `certificates.key_algorithm: "dsa": must be one of `},
		{"puppet: {server: p, ca_server: 'https://ca'}", `puppet.ca_server`},
		{"puppet: {server: p, run_interval: 59s}", `puppet.run_interval: from 1m to 30d, is 59s`},
		{"puppet: {server: p, run_interval: 721h}", `puppet.run_interval: from 1m`},
		{"certificates: {key_pool: -1}", `certificates.key_pool: from 0 to 1000 keys, is -1`},
		{"certificates: {key_pool: 1001}", `certificates.key_pool: from 0 to 1000 keys, is 1001`},
		{"audit: {keep: 23h}", `audit.keep: from 1d to 18250d, is 23h`},
		{"audit: {keep: 438001h}", `audit.keep: from 1d`},
		{"audit: {max_size_mib: -1}", `audit.max_size_mib: from 1 to 1048576 MiB, is -1`},
		{"audit: {max_size_mib: 1048577}", `audit.max_size_mib: from 1`},
		{"puppet: {}", `puppet.server: must be set`},
		{"puppet: {server: 'puppet:8140'}", `puppet.server: "puppet:8140": labels hold a-z, 0-9, _ and - only`},
		{"puppet: {server: 'https://puppet'}", `puppet.server: "https://puppet": labels hold`},
		{`puppet: {server: "puppet\ncertname = x"}`, `puppet.server: "puppet\ncertname = x": labels hold`},
		{"puppet: {server: puppet, port: 65536}", `puppet.port: from 1 to 65535, is 65536`},
		{"puppet: {server: puppet, port: -1}", `puppet.port: from 1 to 65535, is -1`},
		{"protected_certnames: [a, Puppet]", `protected_certnames[1]: certname: "Puppet": must be lower case`},
		{"network: {listen: host}", `network.listen: "host": must be HOST:PORT`},
		{"network: {listen: ':https'}", `network.listen: ":https": must be HOST:PORT`},
		{"network: {certificate: a}", `network: certificate and key belong together`},
		{"network: {ca: a}", `network: ca and crl belong together`},
		{"network: {max_connections: -1}", `network.max_connections: from 1 to 100000, is -1`},
		{"network: {max_connections: 5, max_connections_per_address: 6}", `network.max_connections_per_address: from 1 to max_connections (5), is 6`},
		{"principals: [{certname: a}]", `principals[0].role: "": must be one of admin, provisioner, reader`},
		{"principals: [{role: admin}]", `principals[0]: exactly one of certname and auth_role must be set`},
		{"principals: [{role: admin, certname: A}]", `principals[0].certname: "A": must be lower case`},
		{"principals: [{role: admin, certname: a}, {role: reader, certname: a}]", `principals[1].certname: "a" is listed twice`},
		{"principals: [{role: reader, auth_role: a, names: []}]", `principals[0].names: confines a provisioner`},
		{"principals: [{role: provisioner, auth_role: a, max_ttl: -1s}]", `principals[0].max_ttl: must not be negative`},
		{"log: {level: loud}", `log.level: not a valid logrus Level: "loud"`},
		{"log: {format: xml}", `log.format: text or json, is "xml"`},
	} {
		expectError(t, with(test.section), test.want)
	}
}

func TestStrictness(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{with("stroe: {path: x}"), "field stroe not found"},
		{with("store: {paht: x}"), "field paht not found"},
		{with("authority: {directory: {path: ca, Publish: [a]}}"), "field Publish not found"},
		{with("log: {level: info}\nlog: {level: debug}"), `mapping key "log" already defined`},
		{least + "---\n" + least, "must be one YAML document"},
		{least + "---\n", "must be one YAML document"},
		{least + "...\n%", "could not find expected directive name"},
		{with("store: /srv/espm.db"), "cannot unmarshal !!str `/srv/es...` into config.Store"},
		{with("puppet: {server: puppet, port: https}"), "line 5: cannot unmarshal !!str `https` into int"},
		{with("puppet: {server: [puppet]}"), "cannot unmarshal !!seq into string"},
		{with("protected_certnames: puppet"), "cannot unmarshal !!str `puppet` into []string"},
		{with("certificates: {ttl: 5y}"), `"5y" is not a duration, such as 30d`},
		{with("certificates: {ttl: 86400}"), `"86400" is not a duration, such as 30d`}, // without a unit
		{"- a list", "cannot unmarshal !!seq"},
		{"a: b: c", "mapping values are not allowed"},
		{"\tstore: x", "found character that cannot start any token"},
		{"\x00", "control characters are not allowed"},
		{"", "authority: exactly one of directory and puppetserver must be set"},
		{"# nothing\n", "authority: exactly one of directory and puppetserver must be set"},
	} {
		expectError(t, test.text, test.want)
	}
}

func TestFileIsMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "espm.yaml")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, []byte("listen: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.HasPrefix(err.Error(), "configuration "+path+": listen: ") {
		t.Errorf("got %v", err)
	}
}

// Whatever is in the file, what is accepted is complete and on no network,
// and reading the same again gives the same. Seeds: testdata/fuzz.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data, "/etc/espm")
		if err != nil {
			if err.Error() == "" {
				t.Error("an error that says nothing")
			}
			return
		}
		paths := []string{c.Store.Path, c.ENC.Socket}
		if d := c.Authority.Directory; d != nil {
			paths = append(append(paths, d.Path), d.Publish...)
		}
		listen, local := strings.CutPrefix(c.Listen, "unix://")
		for _, path := range append(paths, listen) {
			if !filepath.IsAbs(path) {
				t.Errorf("path %q is relative", path)
			}
		}
		if !local || c.Puppet.Server == "" || c.Issue.KeyPool == nil || c.Issue.TTL < 0 {
			t.Errorf("accepted: %+v", c)
		}
		if again, err := parse(data, "/etc/espm"); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("then %+v, %v", again, err)
		}
	})
}

// with puts a section into the least configuration, in place of the one of that name.
func with(section string) string {
	var text strings.Builder
	name, _, _ := strings.Cut(section, ":")
	keep := true
	for line := range strings.Lines(least) {
		if !strings.HasPrefix(line, " ") {
			keep = !strings.HasPrefix(line, name+":")
		}
		if keep {
			text.WriteString(line)
		}
	}
	return text.String() + section + "\n"
}

func expect(t *testing.T, text string, want Config) {
	t.Helper()
	got, err := parse([]byte(text), "/etc/espm")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func expectError(t *testing.T, text, want string) {
	t.Helper()
	if _, err := parse([]byte(text), "/etc/espm"); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
	}
}

// Without a network section nothing listens, and without principals no certificate lets in.
func TestNetwork(t *testing.T) {
	c, err := parse([]byte(least), "/etc/espm")
	if err != nil || c.Network != nil || c.Principals != nil {
		t.Errorf("got %+v, %+v, %v", c.Network, c.Principals, err)
	}
	c, err = parse([]byte(with("network: {ca: ca.pem, crl: /crl.pem}")), "/etc/espm")
	want := Network{Listen: ":8443", CA: "/etc/espm/ca.pem", CRL: "/crl.pem", MaxConnections: 4096, MaxConnectionsPerAddress: 512}
	if err != nil || *c.Network != want {
		t.Errorf("got %+v, %v", c.Network, err)
	}
	c, err = parse([]byte(with("principals: [{role: provisioner, certname: a, names: [], max_ttl: 1h}]")), "/etc/espm")
	if err != nil || c.Principals[0].Names == nil || c.Principals[0].Groups != nil {
		t.Errorf("got %+v, %v", c.Principals, err)
	}
}

func TestMemory(t *testing.T) {
	for text, want := range map[string]Memory{"512MiB": 512 << 20, "2GiB": 2 << 30, "64MiB": 64 << 20} {
		var m Memory
		if err := yaml.Unmarshal([]byte(text), &m); err != nil || m != want || m.check() != nil {
			t.Errorf("%s: got %v, %v", text, m, err)
		}
	}
	for _, bad := range []string{"512", "512MB", "-1MiB", "1.5GiB", "MiB", "9999999999GiB", "[512MiB]", "512 MiB", "\"\""} {
		var m Memory
		if err := yaml.Unmarshal([]byte(bad), &m); err == nil || !strings.Contains(err.Error(), "line 1: ") {
			t.Errorf("%s: got %v, %v", bad, m, err)
		}
	}
	if err := Memory(63 << 20).check(); err == nil || !strings.Contains(err.Error(), "memory_limit: at least 64MiB, is 63MiB") {
		t.Errorf("got %v", err)
	}
}
