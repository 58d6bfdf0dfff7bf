package firstboot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/espm-project/espm/test/need"
)

// The script runs here without Puppet: testdata/puppet stands in for it, and
// says where its folders are. test/e2e runs it with a real agent.

// shells are those that instances have as sh.
var shells = [][]string{{"dash"}, {"busybox", "sh"}, {"bash", "--posix"}}

func onEachShell(t *testing.T, test func(t *testing.T, i *instance)) {
	for _, shell := range shells {
		t.Run(shell[0], func(t *testing.T) {
			need.Program(t, shell[0])
			t.Parallel()
			test(t, newInstance(t, slices.Clone(shell)))
		})
	}
}

// instance is a machine that has booted: an image with a puppet.conf to fill,
// and the files that its control plane sent.
type instance struct {
	shell []string
	dir   string
	env   []string
}

const image = "[main]\ncertname = ES_NODE_NAME\nserver = ES_PUPPET_MASTER\nserverport = ES_PUPPET_PORT\n"

func newInstance(t *testing.T, shell []string) *instance {
	t.Helper()
	i := &instance{shell: shell, dir: t.TempDir()}
	puppet, err := filepath.Abs("testdata/bin")
	check(t, err)
	i.env = append(os.Environ(),
		"PATH="+puppet+":"+os.Getenv("PATH"), "FAKE="+i.path("etc"),
		"ES_HOSTS="+i.path("hosts"), "ES_LOG="+i.path("log/firstrun.log"), "ES_FACTS="+i.path("facts/pe.txt"),
		"TMPDIR="+i.path("tmp"))
	for _, dir := range []string{"etc", "facts", "tmp"} {
		check(t, os.Mkdir(i.path(dir), 0o755))
	}
	i.write(t, "etc/puppet.conf", image)
	i.write(t, "hosts", "127.0.0.1 localhost\n")
	i.write(t, "facts/pe.txt", "pe_master=ES_PUPPET_MASTER\nnode=ES_NODE_NAME\n")
	i.identity(t, "web1")
	i.write(t, "ca.pem", "the CA\n")
	i.write(t, "crl.pem", "the CRL\n")
	return i
}

func (i *instance) path(name string) string { return filepath.Join(i.dir, name) }

func (i *instance) write(t *testing.T, name, text string) {
	t.Helper()
	check(t, os.WriteFile(i.path(name), []byte(text), 0o644))
}

func (i *instance) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(i.path(name))
	check(t, err)
	return string(text)
}

// identity makes a key and a certificate of it.
func (i *instance) identity(t *testing.T, name string) {
	t.Helper()
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", i.path(name+".key"), "-out", i.path(name+".pem"), "-subj", "/CN="+name).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
}

// boot runs the script with these arguments in place of the usual five, in order.
func (i *instance) boot(t *testing.T, args ...string) outcome {
	t.Helper()
	script, err := filepath.Abs("runConfigurationManagement-PUPPET")
	check(t, err)
	argv := append(append([]string{}, i.shell...), script)
	cmd := exec.CommandContext(t.Context(), argv[0], append(argv[1:], args...)...)
	cmd.Dir, cmd.Env = i.dir, i.env
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(i.path("tmp")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), output.String()}
}

func (i *instance) bootAt(t *testing.T, master string) outcome {
	t.Helper()
	return i.boot(t, "root", "web1", master, "web1.pem", "web1.key", "ca.pem", "crl.pem")
}

type outcome struct {
	code   int
	output string
}

func (o outcome) is(t *testing.T, code int, texts ...string) {
	t.Helper()
	if o.code != code {
		t.Fatalf("exit %d, want %d:\n%s", o.code, code, o.output)
	}
	for _, text := range texts {
		if !strings.Contains(o.output, text) {
			t.Errorf("doesn't say %q:\n%s", text, o.output)
		}
	}
}

func (i *instance) has(t *testing.T, name, want string) {
	t.Helper()
	if got := i.read(t, name); got != want {
		t.Errorf("%s is %q, want %q", name, got, want)
	}
}

func (i *instance) hasMode(t *testing.T, name string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(i.path(name))
	check(t, err)
	if info.Mode() != want {
		t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
	}
}

func (i *instance) hasNot(t *testing.T, name string) {
	t.Helper()
	if _, err := os.Lstat(i.path(name)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", name, err)
	}
}

// The historical call, by name: five arguments.
func TestFiveArguments(t *testing.T) {
	onEachShell(t, func(t *testing.T, i *instance) {
		i.boot(t, "es-user", "web1", "https://puppet.example.com:8141/", "web1.pem", "web1.key").
			is(t, 0, "no CA certificate was given")
		i.has(t, "etc/puppet.conf", "[main]\ncertname = web1\nserver = puppet.example.com\nserverport = 8141\n")
		i.has(t, "facts/pe.txt", "pe_master=puppet.example.com\nnode=web1\n")
		i.has(t, "hosts", "127.0.0.1 localhost\n")
		i.has(t, "etc/ssl/certs/web1.pem", i.read(t, "web1.pem"))
		i.has(t, "etc/ssl/private_keys/web1.pem", i.read(t, "web1.key"))
		i.hasMode(t, "etc/ssl/private_keys/web1.pem", 0o600)
		i.hasNot(t, "etc/ssl/certs/ca.pem")
		i.has(t, "etc/arguments", "agent --onetime --no-daemonize --detailed-exitcodes --no-usecacheonfailure --waitforcert 0 --logdest="+i.path("log/firstrun.log")+"\n")
	})
}

// With the CA and the CRL nothing is trusted unseen.
func TestTrust(t *testing.T) {
	onEachShell(t, func(t *testing.T, i *instance) {
		o := i.bootAt(t, "puppet.example.com")
		if o.is(t, 0); strings.Contains(o.output, "no CA certificate") {
			t.Error(o.output)
		}
		i.has(t, "etc/ssl/certs/ca.pem", "the CA\n")
		i.has(t, "etc/ssl/crl.pem", "the CRL\n")

		// The CRL of the same CA stays, that of another goes.
		i.boot(t, "root", "web1", "puppet.example.com", "web1.pem", "web1.key", "ca.pem").is(t, 0)
		i.has(t, "etc/ssl/crl.pem", "the CRL\n")
		i.write(t, "ca.pem", "another CA\n")
		i.boot(t, "root", "web1", "puppet.example.com", "web1.pem", "web1.key", "ca.pem").is(t, 0)
		i.has(t, "etc/ssl/certs/ca.pem", "another CA\n")
		i.hasNot(t, "etc/ssl/crl.pem")
	})
}

// A master by address is named puppet in the hosts file, once, however often
// the script runs; a name needs no line.
func TestHosts(t *testing.T) {
	const mark = " puppet puppetmaster # written by runConfigurationManagement-PUPPET\n"
	onEachShell(t, func(t *testing.T, i *instance) {
		// What the script of old left, and what only looks like it.
		i.write(t, "hosts", "127.0.0.1 localhost\n10.9.9.9 puppet puppetmaster\n10.9.9.9\tpuppet puppetmaster\n10.0.0.7 puppet.example.com puppet\n")
		rest := "127.0.0.1 localhost\n10.0.0.7 puppet.example.com puppet\n"
		for _, step := range []struct{ master, host, line string }{
			{"https://10.0.0.1:8140/x", "puppet", "10.0.0.1" + mark},
			{"https://10.0.0.1:8140/x", "puppet", "10.0.0.1" + mark},
			{"https://u:p@[2001:db8::1]:8140", "puppet", "2001:db8::1" + mark},
			{"::1", "puppet", "::1" + mark},
			{"10.0.0.2", "puppet", "10.0.0.2" + mark},
			{"https://10.0.0.1.example.com", "10.0.0.1.example.com", ""},
		} {
			i.bootAt(t, step.master).is(t, 0)
			i.has(t, "hosts", step.line+rest)
			if conf := i.read(t, "etc/puppet.conf"); !strings.Contains(conf, "server = "+step.host+"\n") {
				t.Errorf("%s: puppet.conf:\n%s", step.master, conf)
			}
		}
	})
}

func TestMasterURL(t *testing.T) {
	onEachShell(t, func(t *testing.T, i *instance) {
		for _, test := range []struct{ url, server, port, address string }{
			{"puppet", "puppet", "8140", ""},
			{"puppet:9000", "puppet", "9000", ""},
			{"https://Puppet_1.Example.com/path?x=http://other:1", "Puppet_1.Example.com", "8140", ""},
			{"https://user:pa@ss@puppet.example.com:8141#x", "puppet.example.com", "8141", ""},
			{"https://[::1]", "puppet", "8140", "::1"},
			{"[fe80::1]:9000", "puppet", "9000", "fe80::1"},
			{"2001:db8:0:0:0:0:0:1", "puppet", "8140", "2001:db8:0:0:0:0:0:1"},
			{"::ffff:192.0.2.1", "puppet", "8140", "::ffff:192.0.2.1"},
			{"255.255.255.255", "puppet", "8140", "255.255.255.255"},
			{"10-0-0-1.example.com", "10-0-0-1.example.com", "8140", ""},
		} {
			i.bootAt(t, test.url).is(t, 0)
			want := "[main]\ncertname = web1\nserver = " + test.server + "\nserverport = " + test.port + "\n"
			if got := i.read(t, "etc/puppet.conf"); got != want {
				t.Errorf("%s: puppet.conf %q, want %q", test.url, got, want)
			}
			first, _, _ := strings.Cut(i.read(t, "hosts"), " ")
			if test.address != "" && first != test.address || test.address == "" && first != "127.0.0.1" {
				t.Errorf("%s: hosts:\n%s", test.url, i.read(t, "hosts"))
			}
		}
	})
}

// What a call says wrong is told before anything is touched.
func TestWrongCall(t *testing.T) {
	onEachShell(t, func(t *testing.T, i *instance) {
		i.boot(t).is(t, 1, "usage:")
		i.boot(t, "root", "web1", "puppet", "web1.pem").is(t, 1, "five arguments or more, got 4")
		i.boot(t, "1", "2", "3", "4", "5", "6", "7", "8", "9").is(t, 1, "eight arguments at most")
		for _, name := range []string{"", "Web1", "web1/../x", "-x", "a..b", "web1 x", "web1\nx", "a&b"} {
			i.boot(t, "root", name, "puppet", "web1.pem", "web1.key").is(t, 1, "NODE_NAME")
		}
		for _, url := range []string{
			"", "https://", "https://:8140", "a b", "a|b", "10.0.0.256", "10.0.0", "1.2.3.4.5", "010.0.0.1", "10.0.0.1.",
			":::", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7", "::1::", "12345::", ":1:2:3:4:5:6:7", "::10.0.0.256", "fe80::1%eth0",
			"puppet:x", "puppet\nx", "pup&pet", "-x", "p..q",
		} {
			i.bootAt(t, url).is(t, 1, "PUPPET_MASTER_URL")
		}
		i.boot(t, "root", "web1", "puppet", "web1.pem", "web1.key", "", "crl.pem").is(t, 1, "CRL_FILE")
		i.has(t, "etc/puppet.conf", image)
		i.hasNot(t, "etc/ssl")
	})
}

// A template stays, so that another run has placeholders to fill.
func TestAgainWithOtherValues(t *testing.T) {
	onEachShell(t, func(t *testing.T, i *instance) {
		i.bootAt(t, "one.example.com").is(t, 0)
		i.identity(t, "web2")
		i.boot(t, "root", "web2", "two.example.com:99", "web2.pem", "web2.key").is(t, 0)
		i.has(t, "etc/puppet.conf", "[main]\ncertname = web2\nserver = two.example.com\nserverport = 99\n")
		i.has(t, "facts/pe.txt", "pe_master=two.example.com\nnode=web2\n")

		// What was edited by hand is kept beside it.
		i.write(t, "etc/puppet.conf", "[main]\ncertname = web2\nmine = true\n")
		i.boot(t, "root", "web2", "two.example.com:99", "web2.pem", "web2.key").is(t, 0)
		i.has(t, "etc/puppet.conf.es-previous", "[main]\ncertname = web2\nmine = true\n")

		// A new template in its place is taken.
		i.write(t, "etc/puppet.conf", "[agent]\n"+image)
		i.boot(t, "root", "web2", "three.example.com", "web2.pem", "web2.key").is(t, 0)
		i.has(t, "etc/puppet.conf", "[agent]\n[main]\ncertname = web2\nserver = three.example.com\nserverport = 8140\n")
	})
}

// A puppet.conf that comes with the call takes the place of the image's.
func TestGivenConfiguration(t *testing.T) {
	onEachShell(t, func(t *testing.T, i *instance) {
		i.write(t, "etc/puppet.conf", "the image's\n")
		i.write(t, "given", "[main]\ncertname = web1\nserver = elsewhere\n")
		call := []string{"root", "web1", "puppet", "web1.pem", "web1.key", "ca.pem", "crl.pem", "given"}
		i.boot(t, call...).is(t, 0)
		i.has(t, "etc/puppet.conf", "[main]\ncertname = web1\nserver = elsewhere\n")
		i.has(t, "etc/puppet.conf.es-previous", "the image's\n")
		i.write(t, "given", image)
		i.boot(t, call...).is(t, 0)
		i.has(t, "etc/puppet.conf", "[main]\ncertname = web1\nserver = puppet\nserverport = 8140\n")
	})
}

// An agent of another name would ask with no certificate.
func TestConfigurationOfAnotherNode(t *testing.T) {
	onEachShell(t, func(t *testing.T, i *instance) {
		i.write(t, "etc/puppet.conf", "[main]\ncertname = other\n")
		i.bootAt(t, "puppet").is(t, 98, "says certname other, not web1")
		i.hasNot(t, "etc/arguments")
	})
}

// 0 and 2 are what an agent ends with when all is well, and nothing else is.
func TestExitCodes(t *testing.T) {
	onEachShell(t, func(t *testing.T, i *instance) {
		env := i.env
		for agent, want := range map[string]int{"0": 0, "2": 0, "1": 99, "3": 99, "4": 99, "6": 99, "127": 99, "137": 99, "255": 99} {
			i.env = append(env, "FAKE_EXIT="+agent)
			o := i.bootAt(t, "puppet")
			o.is(t, want)
			if want == 99 {
				o.is(t, want, "puppet agent ended with "+agent, "what the agent logged")
			}
			i.has(t, "log/firstrun.log", "what the agent logged\n") // of this run alone
		}
	})
}

func TestNoPuppet(t *testing.T) {
	onEachShell(t, func(t *testing.T, i *instance) {
		i.env = append(i.env, "FAKE_CONFIG_EXIT=127")
		i.bootAt(t, "puppet").is(t, 98, "puppet does not say its confdir", "no config today")

		tools := t.TempDir() // all but puppet
		for _, name := range []string{i.shell[0], "sh", "grep", "sed", "cat", "cmp", "mktemp", "rm", "mkdir", "chmod", "mv"} {
			path, err := exec.LookPath(name)
			check(t, err)
			check(t, os.Symlink(path, filepath.Join(tools, name)))
		}
		i.env = append(i.env, "PATH="+tools)
		i.shell[0] = filepath.Join(tools, filepath.Base(i.shell[0]))
		if _, err := os.Stat("/opt/puppetlabs/bin/puppet"); err == nil {
			need.This(t, errors.New("this host has the vendor's puppet"))
		}
		i.bootAt(t, "puppet").is(t, 98, "there is no puppet")
	})
}

func TestBrokenIdentity(t *testing.T) {
	onEachShell(t, func(t *testing.T, i *instance) {
		i.identity(t, "other")
		key, cert := i.read(t, "web1.key"), i.read(t, "web1.pem")
		i.write(t, "cut.key", key[:len(key)/2])
		i.write(t, "cut.pem", cert[:len(cert)/2])
		i.write(t, "bad.key", "-----BEGIN PRIVATE KEY-----\nbm8=\n-----END PRIVATE KEY-----\n")
		i.write(t, "bad.pem", "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
		i.write(t, "empty", "")
		for _, test := range []struct{ cert, key, says string }{
			{"none.pem", "web1.key", "none.pem can't be read"},
			{"empty", "web1.key", "empty can't be read, or is empty"},
			{"web1.pem", "none.key", "none.key can't be read"},
			{"cut.pem", "web1.key", "cut.pem has no whole certificate"},
			{"web1.pem", "cut.key", "cut.key has no whole private key"},
			{"bad.pem", "web1.key", "bad.pem is not a certificate"},
			{"web1.pem", "bad.key", "bad.key is not a private key"},
			{"web1.pem", "other.key", "the private key other.key does not belong to the certificate web1.pem"},
		} {
			i.boot(t, "root", "web1", "puppet", test.cert, test.key).is(t, 98, test.says)
		}
		i.has(t, "etc/puppet.conf", image)
		i.hasNot(t, "etc/ssl")
	})
}

// A copy that fails is noticed, whichever it is, and the agent is not run.
func TestCopyFails(t *testing.T) {
	for _, taken := range []string{"etc/ssl/certs/web1.pem", "etc/ssl/private_keys/web1.pem", "etc/ssl/certs/ca.pem", "etc/ssl/crl.pem", "etc/puppet.conf.es-template"} {
		t.Run(filepath.Base(taken), func(t *testing.T) {
			onEachShell(t, func(t *testing.T, i *instance) {
				// A full disk: what is to be written can't be, even by root.
				check(t, os.MkdirAll(i.path(taken+".es-new/x"), 0o755))
				i.bootAt(t, "puppet").is(t, 98, "could not be copied to "+i.path(taken))
				i.hasNot(t, "etc/arguments")
			})
		})
	}
	t.Run("no folder", func(t *testing.T) {
		onEachShell(t, func(t *testing.T, i *instance) {
			i.write(t, "etc/ssl", "a file\n")
			i.bootAt(t, "puppet").is(t, 98, "can't be made")
		})
	})
	t.Run("hosts", func(t *testing.T) {
		onEachShell(t, func(t *testing.T, i *instance) {
			check(t, os.Remove(i.path("hosts")))
			check(t, os.Mkdir(i.path("hosts"), 0o755))
			i.bootAt(t, "10.0.0.1").is(t, 98, "hosts could not be")
		})
	})
	t.Run("log", func(t *testing.T) {
		onEachShell(t, func(t *testing.T, i *instance) {
			check(t, os.MkdirAll(i.path("log/firstrun.log"), 0o755))
			i.bootAt(t, "puppet").is(t, 98, "firstrun.log can't be written")
		})
	})
}

// A key that was readable by all before is not, after.
func TestKeyIsNarrowed(t *testing.T) {
	onEachShell(t, func(t *testing.T, i *instance) {
		check(t, os.MkdirAll(i.path("etc/ssl/private_keys"), 0o755))
		i.write(t, "etc/ssl/private_keys/web1.pem", "old")
		i.bootAt(t, "puppet").is(t, 0)
		i.hasMode(t, "etc/ssl/private_keys/web1.pem", 0o600)
	})
}

func TestShellcheck(t *testing.T) {
	need.Program(t, "shellcheck")
	scripts, err := filepath.Glob("../../docs/examples/*.sh")
	check(t, err)
	if len(scripts) != 2 {
		t.Errorf("got %v", scripts)
	}
	args := append([]string{"--shell=sh", "--norc", "runConfigurationManagement-PUPPET", "testdata/bin/puppet"}, scripts...)
	if out, err := exec.CommandContext(t.Context(), "shellcheck", args...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
