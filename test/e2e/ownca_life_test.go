package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
)

// A name can be provisioned again when the earlier certificate is revoked,
// however long the server takes to answer.
func (s *ownCA) lateTerminate(t *testing.T) {
	first, firstUID := s.espm.provision(t, "late.example.com")
	lost := make(chan struct{}, 1)
	s.proxy.on(func(r *http.Request, _ []byte) fault {
		if strings.HasPrefix(r.Method+" "+r.URL.Path, cleanCall) {
			select {
			case lost <- struct{}{}:
			default:
			}
			return dropBefore
		}
		return pass
	})
	s.espm.espm(t, "node", "terminate", first.certname)
	<-lost
	healed := make(chan struct{})
	go func() {
		<-lost // it was tried again
		s.proxy.on(nil)
		close(healed)
	}()

	second, secondUID := s.espm.provision(t, first.certname)

	select {
	case <-healed:
	default:
		t.Fatal("the second life began before the first was revoked")
	}
	s.espm.espm(t, "node", "terminate", first.certname, "--uid", firstUID, "--wait", "30s")
	certificate := second.certificate(t).Leaf
	if alive := s.alive(t, node.Certname(first.certname)); len(alive) != 1 || alive[0] != node.SerialOf(certificate.SerialNumber) {
		t.Errorf("in force are %v, want %X, of %s", alive, certificate.SerialNumber, secondUID)
	}
	check(t, s.server.ask(second.certificate(t)))
	s.server.refuses(t, first)
}

// A daemon is killed while the server works on a revocation. The next daemon
// waits until the server has finished, even if a caller requests a successor at once.
func (s *ownCA) lateRevocation(t *testing.T) {
	first, _ := s.espm.provision(t, "slow.example.com")
	begun := make(chan struct{})
	s.proxy.until = make(chan struct{})
	s.proxy.on(func(r *http.Request, _ []byte) fault {
		if !strings.HasPrefix(r.Method+" "+r.URL.Path, cleanCall) {
			return pass
		}
		select {
		case <-begun:
			return pass
		default:
			close(begun)
			return dropHeld
		}
	})
	s.espm.espm(t, "node", "terminate", first.certname)
	<-begun
	s.espm.kill()
	s.espm.serve(t, "fail", "")
	time.AfterFunc(3*time.Second, func() { close(s.proxy.until) })

	second, _ := s.espm.provision(t, first.certname)

	<-s.proxy.until
	s.proxy.held.Wait()
	s.proxy.on(nil)
	if serial := node.SerialOf(second.certificate(t).Leaf.SerialNumber); !slices.Equal(s.alive(t, "slow.example.com"), []node.Serial{serial}) {
		t.Errorf("in force are %v, want %s", s.alive(t, "slow.example.com"), serial)
	}
	s.server.refuses(t, first)
}

// A name can be provisioned, terminated and provisioned again with a server that has no /clean.
func (s *ownCA) serverWithoutClean(t *testing.T) {
	for i, f := range []fault{fail404, fail405} {
		s.proxy.on(func(r *http.Request, _ []byte) fault {
			if strings.HasPrefix(r.Method+" "+r.URL.Path, cleanCall) {
				return f
			}
			return pass
		})
		s.espm.kill() // the next one finds out for itself
		s.espm.serve(t, "fail", "")
		first, _ := s.espm.provision(t, fmt.Sprintf("noclean%d.example.com", i))
		first.run(t).exits(t, changed)
		s.terminate(t, first)
		second, _ := s.espm.provision(t, first.certname)
		second.forget(t)
		second.run(t).exits(t, changed).presigned(t)
		s.server.refuses(t, first)
		if s.proxy.count(cleanCall) == 0 {
			t.Error("/clean was not tried")
		}
	}
	s.proxy.on(nil)
	s.espm.kill()
	s.espm.serve(t, "fail", "")
}
