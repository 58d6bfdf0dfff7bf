package e2e

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/test/need"
)

// lifecycle is the scene: espm as the CA and the classifier of one Puppet Server.
type lifecycle struct {
	*lab
	espm   *daemon
	server *puppetServer
}

func TestLifecycle(t *testing.T) { onEachHost(t, testLifecycle) }

func testLifecycle(t *testing.T, h *host) {
	l := newLab(t, h)
	s := &lifecycle{lab: l, espm: initEspm(t, l)}
	s.espm.serve(t, "fail", "")
	s.espm.provisionTo(t, "puppet", l.Server+"/conf", "--dns-alt-name", "localhost")
	s.server = startPuppetServer(t, l)

	// Each act goes on with the stage as the ones before left it, but brings
	// its own nodes.
	t.Run("provisioned/p256", func(t *testing.T) { s.provisioned(t, "p256.example.com", "ec-p256", x509.ECDSA) })
	t.Run("provisioned/rsa", func(t *testing.T) { s.provisioned(t, "rsa.example.com", "rsa-2048", x509.RSA) })
	t.Run("another agent", s.anotherAgent)
	t.Run("reclassified", s.reclassified)
	t.Run("daemon killed", s.daemonKilled)
	t.Run("terminated", s.terminated)
	t.Run("terminated among others", s.terminatedAmongOthers)
	t.Run("same name again", s.sameNameAgain)
	t.Run("unknown/fail", s.unknownFail)
	t.Run("unknown/empty", s.unknownEmpty)
	t.Run("unknown/command", s.unknownCommand)
}

// A provisioned node boots trusted and classified: its first run asks for no
// signature, waits for nothing, and applies what espm says.
func (s *lifecycle) provisioned(t *testing.T, certname, keyAlgorithm string, kind x509.PublicKeyAlgorithm) {
	node, _ := s.espm.provision(t, certname, "--key-algorithm", keyAlgorithm,
		"--environment", "production", "--class", greeting("hello "+keyAlgorithm), "--parameter", `datacenter="Köln"`)
	if got := node.certificate(t).Leaf.PublicKeyAlgorithm; got != kind {
		t.Errorf("the certificate's key is %v, want %v", got, kind)
	}

	node.run(t).exits(t, changed).presigned(t).
		applied(t, "motd", motd("hello "+keyAlgorithm, "Köln")).
		applied(t, "site", "compiled from site.pp\n")
	node.run(t).exits(t, unchanged)
}

// The agents of the other hosts have a life here, too.
func (s *lifecycle) anotherAgent(t *testing.T) {
	for _, each := range hosts {
		if each.name == s.Host.name {
			continue
		}
		t.Run(each.name, func(t *testing.T) {
			h, err := each.get()
			need.This(t, err)
			leaveAlone(t, h)
			node, _ := s.espm.provision(t, "guest.example.com", "--class", greeting("hello"), "--parameter", `datacenter="east"`)
			node.host = h
			t.Logf("puppet agent %s", h.version(t, "puppet-agent"))
			node.run(t).exits(t, changed).presigned(t).applied(t, "motd", motd("hello", "east"))
			node.run(t).exits(t, unchanged)
			s.terminate(t, node)
			node.run(t).exits(t, runFailed).says(t, "alert certificate")
		})
	}
}

// A changed classification reaches the next run.
func (s *lifecycle) reclassified(t *testing.T) {
	node, _ := s.espm.provision(t, "web1.example.com", "--class", greeting("one"), "--parameter", `datacenter="east"`)
	node.run(t).exits(t, changed).applied(t, "motd", motd("one", "east"))

	s.espm.espm(t, "node", "update", node.certname, "--class", greeting("two"), "--parameter", `datacenter="west"`)

	node.run(t).exits(t, changed).applied(t, "motd", motd("two", "west"))
}

// Catalogs compile while the daemon is down, from what it last acknowledged,
// and after it is back.
func (s *lifecycle) daemonKilled(t *testing.T) {
	node, _ := s.espm.provision(t, "web2.example.com", "--class", greeting("before"), "--parameter", `datacenter="east"`)
	node.run(t).exits(t, changed).applied(t, "motd", motd("before", "east"))
	s.espm.espm(t, "node", "update", node.certname, "--class", greeting("written just before"))

	s.espm.kill()
	node.run(t).exits(t, changed).applied(t, "motd", motd("written just before", "east"))

	s.espm.serve(t, "fail", "")
	node.run(t).exits(t, unchanged)
	s.espm.espm(t, "node", "update", node.certname, "--class", greeting("after"))
	node.run(t).exits(t, changed).applied(t, "motd", motd("after", "east"))
}

// A terminated node is refused in the TLS handshake within seconds, and the
// classifier no longer knows it.
func (s *lifecycle) terminated(t *testing.T) {
	node, _ := s.espm.provision(t, "web3.example.com", "--class", greeting("hello"), "--parameter", `datacenter="east"`)
	node.run(t).exits(t, changed)
	check(t, s.server.ask(node.certificate(t)))

	s.terminate(t, node)

	if s.espm.try(t, "enc", node.certname).code == 0 {
		t.Errorf("espm enc %s still answers", node.certname)
	}
	if r := s.enc(t, node.certname); r.code != 1 || !strings.Contains(r.stdout, node.certname) {
		t.Errorf("espm-enc %s: exit %d %q, want 1 and the reason", node.certname, r.code, r.stdout)
	}
	node.run(t).exits(t, runFailed).says(t, "alert certificate")
}

// terminate ends a node's life and checks that the server comes to refuse it.
func (s *lifecycle) terminate(t *testing.T, node agent) {
	t.Helper()
	s.espm.espm(t, "node", "terminate", node.certname)
	begin := time.Now()
	s.server.refuses(t, node)
	t.Logf("%s: refused %v after terminate returned", node.certname, time.Since(begin).Round(10*time.Millisecond))
}

// A certname lives again under a new uid; a late terminate of its earlier
// life changes nothing.
func (s *lifecycle) sameNameAgain(t *testing.T) {
	first, firstUID := s.espm.provision(t, "web4.example.com", "--class", greeting("first life"), "--parameter", `datacenter="east"`)
	first.run(t).exits(t, changed)
	s.terminate(t, first)

	second, secondUID := s.espm.provision(t, first.certname, "--class", greeting("second life"), "--parameter", `datacenter="east"`)
	if secondUID == firstUID {
		t.Errorf("both lives have the uid %s", firstUID)
	}
	second.forget(t)
	second.run(t).exits(t, changed).presigned(t).applied(t, "motd", motd("second life", "east"))

	s.espm.espm(t, "node", "terminate", first.certname, "--uid", firstUID, "--wait", "10s")

	check(t, s.server.ask(second.certificate(t)))
	second.run(t).exits(t, unchanged)
	s.server.refuses(t, first)
}

// A node that espm never saw, with a certificate of the same CA, is refused by default.
func (s *lifecycle) unknownFail(t *testing.T) {
	stranger := s.stranger(t, "stranger1.example.com")

	stranger.run(t).exits(t, runFailed).
		says(t, "Failed to find "+stranger.certname+" via exec", "is not registered").
		applied(t, "site", "")
}

// Under `empty`, site.pp applies to it and nothing else.
func (s *lifecycle) unknownEmpty(t *testing.T) {
	s.espm.stop(t)
	s.espm.serve(t, "empty", "")
	stranger := s.stranger(t, "stranger2.example.com")

	stranger.run(t).exits(t, changed).
		applied(t, "site", "compiled from site.pp\n").
		applied(t, "motd", "")
	s.answersTheSameWhenKilled(t, stranger, "empty", "")
}

// Under `command`, the site's other classifier is asked.
func (s *lifecycle) unknownCommand(t *testing.T) {
	s.espm.stop(t)
	other := s.otherENC(t)
	s.espm.serve(t, "command", other)
	stranger := s.stranger(t, "stranger3.example.com")

	stranger.run(t).exits(t, changed).
		applied(t, "motd", motd("hello by another ENC", stranger.certname))
	s.answersTheSameWhenKilled(t, stranger, "command", other)
}

// answersTheSameWhenKilled checks that the policy on unknown nodes holds while
// the daemon is down, then starts it again.
func (s *lifecycle) answersTheSameWhenKilled(t *testing.T, node agent, unknownNodes, otherENC string) {
	t.Helper()
	before := s.enc(t, node.certname)
	s.espm.kill()
	after := s.enc(t, node.certname)
	if before.code != 0 || after.code != 0 || before.stdout != after.stdout {
		t.Errorf("espm-enc %s: exit %d %q, and with the daemon down exit %d %q",
			node.certname, before.code, before.stdout, after.code, after.stdout)
	}
	s.espm.serve(t, unknownNodes, otherENC)
}
