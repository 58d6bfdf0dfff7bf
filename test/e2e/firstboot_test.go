package e2e

import (
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/espm-project/espm/test/need"
)

// First boots of instances, with the script, a real agent and the real
// server, which has its own CA: without, it could not give an agent the CA
// certificate that the historical call does not. What needs no server is tested in packaging/bootstrap.
func (s *lifecycle) firstBoot(t *testing.T) {
	t.Run("user data", s.bootUserData)
	t.Run("again with other values", s.bootAgain)
	t.Run("failing catalog", s.bootFailingCatalog)
	t.Run("no agent", s.bootNoAgent)
	t.Run("broken key", s.bootBrokenKey)
}

func (s *lifecycle) url(host string) string { return fmt.Sprintf("https://%s:%d", host, s.Port) }

func (s *lifecycle) appliedMotd(t *testing.T, node agent, want string) {
	t.Helper()
	agentRun{agent: node}.applied(t, "motd", want)
}

// Sealed user data is all that an instance needs, besides its identity.
func (s *lifecycle) bootUserData(t *testing.T) {
	need.Program(t, "age")
	i := newInstance(t, s.lab)
	i.write(t, debianConf, "[main]\ncertname = image\n", 0o644)
	keygen := run(t, time.Minute, exec.Command("age-keygen"))
	i.write(t, "/etc/age.key", keygen.stdout, 0o600)
	_, recipient, _ := strings.Cut(keygen.stderr, "Public key: ")

	out := s.espm.espm(t, "node", "provision", "cloud.example.com", "--format", "cloud-init", "--environment", "production",
		"--seal-to", strings.TrimSpace(recipient), "--identity", "/etc/age.key", "--class", greeting("hello"), "--parameter", `datacenter="cloud"`)
	var data struct {
		Files []struct{ Path, Permissions, Encoding, Content string } `yaml:"write_files"`
		Run   [][]string                                              `yaml:"runcmd"`
	}
	check(t, yaml.Unmarshal([]byte(out), &data))
	for _, f := range data.Files {
		content := f.Content
		if f.Encoding != "" {
			raw, err := base64.StdEncoding.DecodeString(content)
			check(t, err)
			content = string(raw)
		}
		if f.Encoding == "gz+b64" {
			r, err := gzip.NewReader(strings.NewReader(content))
			check(t, err)
			raw, err := io.ReadAll(r)
			check(t, err)
			content = string(raw)
		}
		i.write(t, f.Path, content, 0o600)
	}

	i.run(t, data.Run[0]...).is(t, 0, "changes were made")

	s.appliedMotd(t, agent{lab: s.lab, certname: "cloud.example.com"}, motd("hello", "cloud"))
	if conf := i.read(t, debianConf); !strings.Contains(conf, "environment = production\n") {
		t.Errorf("puppet.conf:\n%s", conf)
	}
	if left, err := filepath.Glob(i.root + "/var/lib/espm-first-boot*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	key, err := os.Stat(i.root + "/etc/puppet/ssl/private_keys/cloud.example.com.pem")
	check(t, err)
	t.Logf("the key's mode after the agent's run: %v", key.Mode())
	if key.Mode().Perm()&0o007 != 0 {
		t.Errorf("everyone may read the key: %v", key.Mode())
	}
}

// The historical call by host name, another node by IPv4, and that again by IPv6.
func (s *lifecycle) bootAgain(t *testing.T) {
	i := newInstance(t, s.lab).withImage(t, debianConf)
	one, _ := s.espm.provision(t, "boot1.example.com", "--class", greeting("one"), "--parameter", `datacenter="name"`)
	i.boot(t, one, s.url("localhost")).is(t, 0, "no CA certificate was given", "changes were made")
	s.appliedMotd(t, one, motd("one", "name"))

	two, _ := s.espm.provision(t, "boot2.example.com", "--class", greeting("two"), "--parameter", `datacenter="address"`)
	i.boot(t, two, s.url("127.0.0.1"), two.trust()...).is(t, 0, "changes were made")
	s.appliedMotd(t, two, motd("two", "address"))

	relay6(t, s.Port)
	i.boot(t, two, s.url("[::1]"), two.trust()...).is(t, 0, "nothing had to be changed")
	if got, want := i.read(t, "/etc/hosts"), "::1 puppet puppetmaster # written by runConfigurationManagement-PUPPET\n127.0.0.1 localhost\n"; got != want {
		t.Errorf("hosts:\n%s\nwant:\n%s", got, want)
	}
	want := fmt.Sprintf("[main]\ncertname = boot2.example.com\nserver = puppet\nserverport = %d\n", s.Port)
	if got := i.read(t, debianConf); got != want {
		t.Errorf("puppet.conf:\n%s\nwant:\n%s", got, want)
	}

	s.terminate(t, two)
	i.boot(t, two, s.url("127.0.0.1"), two.trust()...).is(t, 99, "puppet agent ended with 1", "alert certificate")
}

// Failures among changes, failures alone: neither passes for a success. In the vendor's folders.
func (s *lifecycle) bootFailingCatalog(t *testing.T) {
	i := newInstance(t, s.lab).withImage(t, vendorConf)
	node, _ := s.espm.provision(t, "boot3.example.com", "--class", "broken")
	for _, code := range []int{6, 4} {
		i.boot(t, node, s.url("localhost"), node.trust()...).is(t, 99, fmt.Sprintf("puppet agent ended with %d", code), "/bin/false")
	}
	if _, err := os.Stat(i.root + "/etc/puppetlabs/puppet/ssl/private_keys/boot3.example.com.pem"); err != nil {
		t.Error(err)
	}
}

// An agent that does not start: the shell's 127.
func (s *lifecycle) bootNoAgent(t *testing.T) {
	i := newInstance(t, s.lab).withImage(t, vendorConf)
	i.write(t, vendorBin, strings.Replace(vendorPuppet, "exec", `[ "$1" != agent ] || exec /opt/puppetlabs/gone`+"\nexec", 1), 0o755)
	node, _ := s.espm.provision(t, "boot4.example.com")
	i.boot(t, node, s.url("localhost"), node.trust()...).is(t, 99, "puppet agent ended with 127")
}

func (s *lifecycle) bootBrokenKey(t *testing.T) {
	i := newInstance(t, s.lab).withImage(t, debianConf)
	one, _ := s.espm.provision(t, "boot5.example.com")
	two, _ := s.espm.provision(t, "boot6.example.com")
	key := one.dir + "/ssl/private_keys/boot5.example.com.pem"
	check(t, os.WriteFile(key, readFile(t, two.dir+"/ssl/private_keys/boot6.example.com.pem"), 0o600))
	i.boot(t, one, s.url("localhost"), one.trust()...).is(t, 98, "does not belong to the certificate")
	check(t, os.Truncate(key, 100))
	i.boot(t, one, s.url("localhost"), one.trust()...).is(t, 98, "no whole private key")
}

// relay6 lets the server, which listens on 127.0.0.1, be reached at ::1.
func relay6(t *testing.T, port int) {
	t.Helper()
	l, err := net.Listen("tcp6", fmt.Sprintf("[::1]:%d", port))
	need.This(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return // closed
			}
			go relay(from, port)
		}
	}()
}

func relay(from net.Conn, port int) {
	defer from.Close()
	to, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return
	}
	defer to.Close()
	go func() {
		_, _ = io.Copy(to, from)
		_ = to.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(from, to)
}
