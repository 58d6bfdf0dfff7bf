package crash

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
)

// The test binary runs itself as the child that is killed.
const (
	childDir  = "ESPM_CRASH_DIR"
	childDoes = "ESPM_CRASH_DOES" // import or drop; else a node's life
	childStep = "ESPM_CRASH_STEP" // which step, from 1
	childWhen = "ESPM_CRASH_WHEN" // before or after
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// killer ends the process at one durable step.
type killer struct {
	at    int64
	after bool
	count atomic.Int64
	last  func() // called just before the kill; may be nil
}

func (k *killer) step(do func() error) error {
	hit := k.count.Add(1) == k.at
	if hit && !k.after {
		k.die()
	}
	err := do()
	if hit {
		k.die()
	}
	return err
}

func (k *killer) die() {
	if k.last != nil {
		k.last()
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

type killerEngine struct {
	store.Engine
	k *killer
}

func (e killerEngine) Commit(ctx context.Context, b store.Batch) (rev int64, err error) {
	err = e.k.step(func() error { rev, err = e.Engine.Commit(ctx, b); return err })
	return rev, err
}

type killerDisk struct {
	durable.Disk
	k *killer
}

// WriteFile prints the number of the CRL that it writes, before and after the write.
func (d killerDisk) WriteFile(path string, data []byte, mode fs.FileMode) error {
	if filepath.Base(path) != "ca_crl.pem" {
		return d.k.step(func() error { return d.Disk.WriteFile(path, data, mode) })
	}
	block, _ := pem.Decode(data)
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return err
	}
	fmt.Println("writes-crl", crl.Number)
	return d.k.step(func() error {
		err := d.Disk.WriteFile(path, data, mode)
		if err == nil {
			fmt.Println("wrote-crl", crl.Number)
		}
		return err
	})
}

func (d killerDisk) Append(path string, data []byte, mode fs.FileMode) error {
	return d.k.step(func() error { return d.Disk.Append(path, data, mode) })
}

func (d killerDisk) Remove(paths ...string) error {
	return d.k.step(func() error { return d.Disk.Remove(paths...) })
}

// child does the work, and prints what was acknowledged for the parent to check.
func child(dir string) error {
	at, err := strconv.ParseInt(os.Getenv(childStep), 10, 64)
	if err != nil {
		return err
	}
	k := &killer{at: at, after: os.Getenv(childWhen) == "after"}
	w, err := open(dir, func(e store.Engine) store.Engine { return killerEngine{e, k} }, killerDisk{durable.OS, k})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(node.AsSelf(context.Background()), time.Minute)
	defer cancel()
	switch os.Getenv(childDoes) {
	case "import":
		return importAll(ctx, w)
	case "drop":
		return dropAll(ctx, w, k)
	}
	go w.queue.Run(ctx)
	csr, err := os.ReadFile(filepath.Join(dir, "csr.pem"))
	if err != nil {
		return err
	}
	made, err := w.provision(ctx, "made.test", nil, w.registry)
	if err != nil {
		return err
	}
	fmt.Println("provisioned made.test", made.Node.Newest())
	if err := w.audit.Seal(ctx); err != nil {
		return err
	}
	if err := w.authority.Care(ctx); err != nil { // signs a CRL: see open
		return err
	}
	sent, err := w.provision(ctx, "sent.test", csr, w.registry)
	if err != nil {
		return err
	}
	fmt.Println("provisioned sent.test", sent.Node.Newest())
	fmt.Println("asked-again made.test") // its first certificate may be revoked from here on
	again, err := w.provision(ctx, "made.test", nil, w.forgetful())
	if err != nil {
		return err
	}
	fmt.Println("provisioned made.test", again.Node.Newest())
	if err := w.audit.Seal(ctx); err != nil {
		return err
	}
	for _, name := range []node.Certname{"made.test", "sent.test"} {
		fmt.Println("asked-terminate", name)
		t, err := w.registry.Terminate(ctx, registry.TerminateRequest{Certname: name}, 0, false)
		if err != nil {
			return err
		}
		fmt.Println("terminated", name)
		if t.Revocations, err = w.queue.Wait(ctx, t.Revocations); err != nil {
			return err
		}
		if err := w.audit.Seal(ctx); err != nil {
			return err
		}
	}
	return w.authority.Care(ctx)
}

func (w *world) provision(ctx context.Context, name node.Certname, csr []byte, r *registry.Registry) (registry.Provisioned, error) {
	return r.Provision(ctx, node.Node{Certname: name}, registry.Spec{CSRPEM: csr}, "request-"+string(name), false)
}

// said is what the child printed before the kill.
type said struct {
	serial     map[string]node.Serial // of a provision that nothing was asked after
	open       map[string]bool        // asked for anew, or to be terminated: may have happened
	terminated map[string]bool
	writes     []*big.Int // the numbers of CRLs that were to be written
	wrote      *big.Int   // the last one that was
}

func listen(out []byte) said {
	s := said{serial: map[string]node.Serial{}, open: map[string]bool{}, terminated: map[string]bool{}, wrote: new(big.Int)}
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		switch f[0] {
		case "provisioned":
			s.serial[f[1]] = node.Serial(f[2])
			delete(s.open, f[1])
		case "asked-again", "asked-terminate":
			s.open[f[1]] = true
		case "terminated":
			s.terminated[f[1]] = true
		case "writes-crl", "wrote-crl":
			n, _ := new(big.Int).SetString(f[1], 10)
			if f[0] == "wrote-crl" {
				s.wrote = n
			} else {
				s.writes = append(s.writes, n)
			}
		}
	}
	return s
}

func TestKilledAtEachStep(t *testing.T) {
	steps := killEachStep(t, killAt)
	if !t.Failed() && steps < 30 {
		t.Errorf("only %d kills: the child has far more durable steps than that", steps)
	}
	t.Logf("%d kills", steps)
}

// killEachStep runs the child again and again, each time with a kill before or after the next durable step. It returns
// the number of steps.
func killEachStep(t *testing.T, kill func(t *testing.T, at int, when string) (killed bool)) (kills int) {
	for _, when := range []string{"before", "after"} {
		for at := 1; ; at++ {
			killed := false
			t.Run(fmt.Sprintf("%s step %d", when, at), func(t *testing.T) { killed = kill(t, at, when) })
			if t.Failed() || !killed {
				break
			}
			kills++
		}
	}
	return kills
}

// runChild runs the child, which is killed at the step if it reaches it, and returns what it printed.
func runChild(ctx context.Context, t *testing.T, dir, does string, at int, when string) (out []byte, killed bool) {
	t.Helper()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childDoes+"="+does, childStep+"="+strconv.Itoa(at), childWhen+"="+when)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return out, false
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the child failed by itself: %v: %s", err, stderr.Bytes())
	}
	return out, true
}

func killAt(t *testing.T, at int, when string) bool {
	dir := t.TempDir()
	newCA(t, dir)
	csr, key, err := newCSR("sent.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "csr.pem"), csr, 0o600); err != nil {
		t.Fatal(err)
	}
	out, killed := runChild(node.AsSelf(t.Context()), t, dir, "", at, when)
	s := listen(out)
	w, err := open(dir, unwrapped, durable.OS)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close(t)
	ctx, cancel := context.WithCancel(node.AsSelf(t.Context()))
	defer cancel()
	w.run(ctx)
	settled(t, w.store)
	before := checkOrphans(t, dir, w.store)
	checkSaid(t, w, dir, s, before)
	lines := checkAudit(t, w)
	for name, serial := range s.serial {
		if n := lines[subject{node.ActionIssue, string(serial)}]; n != 1 {
			t.Errorf("%s was provisioned with %s, and has %d lines of that", name, serial, n)
		}
		cert, err := w.store.Certificate(node.AsSelf(t.Context()), serial)
		if n := lines[subject{node.ActionTerminate, string(cert.UID)}]; err != nil || s.terminated[name] && n != 1 {
			t.Errorf("%s was terminated, and has %d lines of that, %v", name, n, err)
		}
	}
	retryAll(t, w, dir, s, csr, &key.PublicKey, before.number)
	return killed
}

// checkSaid checks that every acknowledged write is there.
func checkSaid(t *testing.T, w *world, dir string, s said, crl crlState) {
	t.Helper()
	if crl.number.Cmp(s.wrote) < 0 {
		t.Errorf("CRL number %v after the restart, %v before", crl.number, s.wrote)
	}
	for i := 1; i < len(s.writes); i++ {
		if s.writes[i].Cmp(s.writes[i-1]) <= 0 {
			t.Errorf("CRL numbers %v must rise", s.writes)
		}
	}
	for name, serial := range s.serial {
		n, err := w.store.Node(node.AsSelf(t.Context()), node.Certname(name))
		switch {
		case s.terminated[name]:
			if err == nil || !crl.revoked[serial] {
				t.Errorf("terminated %q: in the classifier %v, serial %s revoked %v", name, err == nil, serial, crl.revoked[serial])
			}
			cert, err := w.store.Certificate(node.AsSelf(t.Context()), serial)
			if err != nil {
				t.Error(err)
			} else if err := verify(t, dir, []byte(cert.PEM)); err == nil || !strings.Contains(err.Error(), "certificate revoked") {
				t.Errorf("openssl verify of terminated %q: %v", name, err)
			}
		case s.open[name]: // checkOrphans has seen to it
		case err != nil || n.Newest() != serial || crl.revoked[serial]:
			t.Errorf("provisioned %q with %s: found %+v, %v, revoked %v", name, serial, n, err, crl.revoked[serial])
		}
	}
}

// retryAll retries all calls with the same request id, like a control plane that got no answer. It checks that
// terminated nodes stay terminated.
func retryAll(t *testing.T, w *world, dir string, s said, csr []byte, public *ecdsa.PublicKey, last *big.Int) {
	t.Helper()
	for _, name := range []string{"made.test", "sent.test"} {
		_, gone := w.store.Node(node.AsSelf(t.Context()), node.Certname(name))
		if s.terminated[name] || s.open[name] && gone != nil {
			if _, err := w.provision(node.AsSelf(t.Context()), node.Certname(name), pick(name, csr), w.registry); err == nil {
				t.Errorf("a late retry brought %q back to life", name)
			}
			continue
		}
		p, err := w.provision(node.AsSelf(t.Context()), node.Certname(name), pick(name, csr), w.registry)
		if err != nil {
			t.Errorf("retry of %q: %v", name, err)
			continue
		}
		if err := verify(t, dir, p.Bundle.CertificatePEM); err != nil {
			t.Errorf("retry of %q: %v", name, err)
		}
		if name == "sent.test" && !public.Equal(parse(t, p.Bundle.CertificatePEM).PublicKey) {
			t.Error("the retry's certificate is not for the caller's key")
		}
	}
	settled(t, w.store)
	if after := checkOrphans(t, dir, w.store); after.number.Cmp(last) < 0 {
		t.Errorf("CRL number went from %v back to %v", last, after.number)
	}
}

func pick(name string, csr []byte) []byte {
	if name == "sent.test" {
		return csr
	}
	return nil
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	if block == nil {
		t.Fatal("not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
