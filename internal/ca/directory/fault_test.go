package directory_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/test/need"
)

var errFault = errors.New("injected fault")

// faulty is a Disk that fails one step: before it is applied, or after. A
// dead one fails all that follow too, as if the process had been killed.
type faulty struct {
	failAt  int // counted from 0; negative: never
	applied bool
	dead    bool

	mu    sync.Mutex
	steps []string
}

func (f *faulty) step(op, path string, apply func() error) error {
	f.mu.Lock()
	n := len(f.steps)
	f.steps = append(f.steps, op+" "+filepath.Base(path))
	f.mu.Unlock()
	if n != f.failAt && (!f.dead || f.failAt < 0 || n < f.failAt) {
		return apply()
	}
	if n == f.failAt && f.applied {
		if err := apply(); err != nil {
			return err
		}
	}
	return errFault
}

func (f *faulty) WriteFile(path string, data []byte, mode fs.FileMode) error {
	return f.step("write", path, func() error { return durable.OS.WriteFile(path, data, mode) })
}

func (f *faulty) Append(path string, data []byte, mode fs.FileMode) error {
	return f.step("append", path, func() error { return durable.OS.Append(path, data, mode) })
}

func (f *faulty) Remove(paths ...string) error {
	return f.step("remove", paths[0], func() error { return durable.OS.Remove(paths...) })
}

// arm forgets the past and fails the step n from now.
func (f *faulty) arm(n int, applied, dead bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failAt, f.applied, f.dead, f.steps = n, applied, dead, nil
}

// faults runs a test for every way in which a step can fail: applied or not,
// the process living on or killed.
func faults(t *testing.T, test func(t *testing.T, applied, killed bool)) {
	for name, f := range map[string]struct{ applied, killed bool }{
		"not applied":            {false, false},
		"applied anyway":         {true, false},
		"killed before":          {false, true},
		"killed after, unspoken": {true, true},
	} {
		t.Run(name, func(t *testing.T) { test(t, f.applied, f.killed) })
	}
}

// TestSignFaults fails each durable step of a Sign. Whatever happened, Find
// tells, what it found can be revoked, and the name can have another.
func TestSignFaults(t *testing.T) {
	steps := []string{"append inventory.txt", "write web.example.com.pem"}
	for i, step := range steps {
		t.Run(step, func(t *testing.T) {
			faults(t, func(t *testing.T, applied, killed bool) {
				dir := create(t, directory.CreateOptions{Key: ca.ECP256})
				disk := &faulty{failAt: i, applied: applied, dead: killed}
				a := open(t, dir, directory.Options{Disk: disk})
				r := request(t, a, "web.example.com")
				_, err := a.Sign(t.Context(), r)
				if !errors.Is(err, errFault) || !errors.Is(err, node.ErrUnavailable) {
					t.Fatalf("Sign: %v", err)
				}
				if got := disk.steps[i]; got != step {
					t.Fatalf("failed step %q, want %q", got, step)
				}
				if killed {
					a = reopen(t, a, dir, directory.Options{})
				} else {
					disk.arm(-1, false, false)
				}
				found, err := a.Find(t.Context(), ca.Query{Certname: r.Certname, Serial: r.Serial})
				if err != nil {
					t.Fatal(err)
				}
				if want := i > 0 || applied; found.Issued != want {
					t.Errorf("Issued %v, want %v", found.Issued, want)
				}
				if want := i > 0 && applied; (found.Certificate != nil) != want {
					t.Errorf("Certificate %v, want one: %v", found.Certificate, want)
				}
				if found.Issued {
					revoke(t, a, ca.Target{Serial: r.Serial, Certname: r.Certname})
				}
				sign(t, a, r.Certname)
			})
		})
	}
}

// TestRevokeFaults fails each durable step of a Revoke. The same call again
// ends with the serial on the CRL once, a number that rose, every copy equal.
func TestRevokeFaults(t *testing.T) {
	steps := []string{"write ca_crl.pem", "write first.pem", "write second.pem", "remove web.example.com.pem"}
	for i, step := range steps {
		t.Run(step, func(t *testing.T) {
			faults(t, func(t *testing.T, applied, killed bool) {
				dir := create(t, directory.CreateOptions{Key: ca.ECP256, Intermediate: true})
				copies := []string{filepath.Join(t.TempDir(), "first.pem"), filepath.Join(t.TempDir(), "second.pem")}
				disk := &faulty{failAt: -1}
				a := open(t, dir, directory.Options{Disk: disk, Publish: copies})
				earlier := sign(t, a, "earlier.example.com")
				revoke(t, a, target(earlier))
				cert := sign(t, a, "web.example.com")

				disk.arm(i, applied, killed)
				_, err := a.Revoke(t.Context(), []ca.Target{target(cert)})
				if !errors.Is(err, errFault) || !errors.Is(err, node.ErrUnavailable) {
					t.Fatalf("Revoke: %v", err)
				}
				if got := disk.steps[i]; got != step {
					t.Fatalf("failed step %q, want %q", got, step)
				}
				if killed {
					a = reopen(t, a, dir, directory.Options{Publish: copies})
				} else {
					disk.arm(-1, false, false)
				}
				checkTrust(t, a, dir)
				number, err := a.Listed(t.Context(), target(cert).Serial)
				if want := i > 0 || applied; err != nil || (number == "2") != want {
					t.Errorf("on CRL %q, %v, want it there %v", number, err, want)
				}
				receipt := revoke(t, a, target(cert))[0]
				if got := receipt.CRLNumber; got != "2" {
					t.Errorf("receipt names CRL %s, want 2: one for each revocation", got)
				}
				checkTrust(t, a, dir)
				want := read(t, dir, "ca_crl.pem")
				for _, path := range copies {
					if read(t, path) != want {
						t.Errorf("%s differs from ca_crl.pem", path)
					}
				}
				if n := len(readCRLs(t, filepath.Join(dir, "ca_crl.pem"))[0].RevokedCertificateEntries); n != 2 {
					t.Errorf("%d entries, want 2", n)
				}
				if exists(t, dir, "signed", "web.example.com.pem") {
					t.Error("the revoked certificate still stands in signed/")
				}
			})
		})
	}
}

// checkTrust: memory says what the disk says.
func checkTrust(t *testing.T, a *directory.Authority, dir string) {
	t.Helper()
	trust, err := a.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if string(trust.CRLsPEM) != read(t, dir, "ca_crl.pem") {
		t.Error("Trust differs from ca_crl.pem")
	}
}

func reopen(t *testing.T, a *directory.Authority, dir string, o directory.Options) *directory.Authority {
	t.Helper()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, dir, o)
}

// TestUnappliedWriteMayNotLast: a CRL that was renamed into place without an
// fsync of the folder is written again before anybody gets a receipt.
func TestUnappliedWriteMayNotLast(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	disk := &faulty{failAt: -1}
	a := open(t, dir, directory.Options{Disk: disk})
	cert := sign(t, a, "web.example.com")
	disk.arm(0, true, false)
	if _, err := a.Revoke(t.Context(), []ca.Target{target(cert)}); !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	disk.arm(-1, false, false)
	if got := revoke(t, a, target(cert))[0].CRLNumber; got != "1" {
		t.Errorf("CRL number %s, want 1", got)
	}
	if disk.steps[0] != "write ca_crl.pem" {
		t.Errorf("steps %q, want ca_crl.pem written again", disk.steps)
	}
}

// blindDisk writes files that can't be read again.
type blindDisk struct{ durable.Disk }

func (blindDisk) WriteFile(path string, data []byte, mode fs.FileMode) error {
	return errors.Join(errFault, durable.OS.WriteFile(path+".away", data, mode), os.Remove(path), os.Mkdir(path, 0o755))
}

// What a failed write left where it can't be read is not guessed.
func TestListedWhereTheFileCannotTell(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	a := open(t, dir, directory.Options{Disk: blindDisk{durable.OS}})
	const serial = "0A0B"
	if number, err := a.Listed(t.Context(), serial); err != nil || number != "" {
		t.Errorf("on CRL %q, %v", number, err)
	}
	if _, err := a.Revoke(t.Context(), []ca.Target{{Serial: serial}}); !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	if number, err := a.Listed(t.Context(), serial); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("on CRL %q, %v", number, err)
	}
	path := filepath.Join(dir, "ca_crl.pem")
	if err := errors.Join(os.Remove(path), os.Rename(path+".away", path)); err != nil {
		t.Fatal(err)
	}
	a = reopen(t, a, dir, directory.Options{})
	if number, err := a.Listed(t.Context(), serial); err != nil || number != "1" {
		t.Errorf("on CRL %q, %v", number, err)
	}
}

// TestCarePublishesOnlyWhatLasts: nor does care give away a CRL that a power cut may take back.
func TestCarePublishesOnlyWhatLasts(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	copied := filepath.Join(t.TempDir(), "crl.pem")
	clock, disk := newCalendar(), &faulty{failAt: -1}
	a := open(t, dir, directory.Options{Disk: disk, Publish: []string{copied}, Now: clock.now, CRLValidity: 90 * day})
	revoke(t, a, ca.Target{Serial: "0A0B"})
	care(t, a)
	before := read(t, copied)
	clock.pass(61 * day)
	disk.arm(0, true, false)
	if err := a.Care(t.Context()); !errors.Is(err, errFault) {
		t.Fatalf("Care: %v", err)
	}
	if read(t, copied) != before {
		t.Errorf("published what may not last: %q", disk.steps)
	}
	disk.arm(-1, false, false)
	care(t, a)
	if read(t, copied) != read(t, dir, "ca_crl.pem") || read(t, copied) == before {
		t.Error("the new CRL is not published")
	}
}

// TestFullDisk runs the authority on a file system with room for nothing.
func TestFullDisk(t *testing.T) {
	dir := need.Disk(t, "128k")
	cadir := filepath.Join(dir, "ca")
	if err := directory.Create(cadir, directory.CreateOptions{Host: "h", Key: ca.ECP256, Now: now}); err != nil {
		t.Fatal(err)
	}
	a := open(t, cadir, directory.Options{})
	defer func() { _ = a.Close() }() // before the unmount
	cert := sign(t, a, "web.example.com")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 128<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	before := read(t, cadir, "ca_crl.pem")
	_, err := a.Revoke(t.Context(), []ca.Target{target(cert)})
	if !errors.Is(err, unix.ENOSPC) || !errors.Is(err, node.ErrUnavailable) || !strings.Contains(err.Error(), "ca_crl.pem") {
		t.Errorf("Revoke: %v, want ENOSPC naming ca_crl.pem", err)
	}
	_, err = a.Sign(t.Context(), request(t, a, "db.example.com"))
	if !errors.Is(err, unix.ENOSPC) || !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("Sign: %v, want ENOSPC", err)
	}
	if read(t, cadir, "ca_crl.pem") != before {
		t.Error("the CRL changed")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	revoke(t, a, target(cert))
	sign(t, a, "db.example.com")
}

// TestCareFaults fails each durable step of a round of care. The next one
// ends with one new CRL, without what has expired, everywhere.
func TestCareFaults(t *testing.T) {
	steps := []string{"write ca_crl.pem", "write espm_crl_number", "write crl.pem"}
	for i, step := range steps {
		t.Run(step, func(t *testing.T) {
			faults(t, func(t *testing.T, applied, killed bool) {
				dir := create(t, directory.CreateOptions{Key: ca.ECP256, Intermediate: true})
				copied := filepath.Join(t.TempDir(), "crl.pem")
				clock := newCalendar()
				disk := &faulty{failAt: -1}
				a := open(t, dir, directory.Options{Disk: disk, Publish: []string{copied}, Now: clock.now, Uptime: clock.uptime})
				expired := sign(t, a, "expired.example.com")
				revoke(t, a, target(expired))
				clock.pass(2 * day)
				revoke(t, a, ca.Target{Serial: "0A0B"}) // a CRL after its end
				care(t, a)
				clock.pass(40 * day)
				disk.arm(i, applied, killed)
				if err := a.Care(t.Context()); !errors.Is(err, errFault) || !errors.Is(err, node.ErrUnavailable) {
					t.Fatalf("Care: %v", err)
				}
				if got := disk.steps[i]; got != step {
					t.Fatalf("failed step %q, want %q", got, step)
				}
				if killed {
					a = reopen(t, a, dir, directory.Options{Publish: []string{copied}, Now: clock.now, Uptime: clock.uptime})
					clock.pass(day) // from the start to the first pruning
				} else {
					disk.arm(-1, false, false)
				}
				checkTrust(t, a, dir)
				care(t, a)
				ownCRL(t, dir).expect(3, "0A0B")
				checkTrust(t, a, dir)
				if read(t, copied) != read(t, dir, "ca_crl.pem") {
					t.Error("the copy differs")
				}
			})
		})
	}
}
