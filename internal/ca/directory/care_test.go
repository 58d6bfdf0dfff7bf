package directory_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/ca/directory"
	"github.com/espm-project/espm/internal/node"
)

const day = 24 * time.Hour

// calendar is a clock that a test moves on; step sets it, as somebody does to a clock that is wrong.
type calendar struct {
	time.Time
	passed time.Duration
}

func (c *calendar) now() time.Time            { return c.Time }
func (c *calendar) uptime() time.Duration     { return c.passed }
func (c *calendar) step(d time.Duration)      { c.Time = c.Add(d) }
func (c *calendar) pass(d time.Duration)      { c.step(d); c.passed += d }
func newCalendar() *calendar                  { return &calendar{Time: now()} }
func ownCRL(t *testing.T, dir string) ownList { return ownList{t, dir} }

// ownList reads the CA's own CRL of a folder.
type ownList struct {
	t   *testing.T
	dir string
}

func (o ownList) serials() []string {
	o.t.Helper()
	var listed []string
	for _, e := range readCRLs(o.t, filepath.Join(o.dir, "ca_crl.pem"))[0].RevokedCertificateEntries {
		listed = append(listed, string(node.SerialOf(e.SerialNumber)))
	}
	slices.Sort(listed)
	return listed
}

func (o ownList) number() int64 {
	o.t.Helper()
	return readCRLs(o.t, filepath.Join(o.dir, "ca_crl.pem"))[0].Number.Int64()
}

func (o ownList) expect(number int64, serials ...node.Serial) {
	o.t.Helper()
	var want []string
	for _, s := range serials {
		want = append(want, string(s))
	}
	slices.Sort(want)
	if got := o.serials(); o.number() != number || !slices.Equal(got, want) {
		o.t.Errorf("CRL %d lists %q, want CRL %d and %q", o.number(), got, number, want)
	}
}

func care(t *testing.T, a *directory.Authority) {
	t.Helper()
	if err := a.Care(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestCRLIsSignedInTime(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	published := filepath.Join(t.TempDir(), "crl.pem")
	clock := newCalendar()
	a := open(t, dir, directory.Options{Now: clock.now, CRLValidity: 90 * day, Publish: []string{published}})
	revoke(t, a, ca.Target{Serial: "0A0B"})
	for _, step := range []struct {
		pass   time.Duration
		number int64
	}{{0, 1}, {59 * day, 1}, {2 * day, 2}, {59 * day, 2}, {2 * day, 3}, {365 * day, 4}} {
		clock.pass(step.pass)
		care(t, a)
		care(t, a) // another round finds nothing to do
		ownCRL(t, dir).expect(step.number, "0A0B")
		crl := readCRLs(t, published)[0]
		if left := crl.NextUpdate.Sub(clock.now()); left < 30*day || crl.ThisUpdate.After(clock.now()) {
			t.Errorf("the published CRL %d holds from %v to %v, now is %v", crl.Number, crl.ThisUpdate, crl.NextUpdate, clock.now())
		}
		checkTrust(t, a, dir)
	}
}

// TestExpiredLeaveTheCRL: after the grace, and not before a CRL issued after
// the certificate's end has listed it. Who is not in the inventory stays.
func TestExpiredLeaveTheCRL(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.RSA2048})
	clock := newCalendar()
	options := directory.Options{Now: clock.now, Uptime: clock.uptime, KeepExpired: 2 * day}
	a := open(t, dir, options)
	byName := target(sign(t, a, "name.example.com"))
	bySerial := target(sign(t, a, "serial.example.com"))
	earlier := target(sign(t, a, "earlier.example.com"))
	long := request(t, a, "long.example.com")
	long.TTL = 365 * day
	kept, err := a.Sign(t.Context(), long)
	if err != nil {
		t.Fatal(err)
	}
	unknown := ca.Target{Serial: "0ABC"}
	revoke(t, a, earlier)
	a = reopen(t, a, dir, options)
	revoke(t, a, byName, ca.Target{Serial: bySerial.Serial}, target(kept), unknown)
	all := []node.Serial{byName.Serial, bySerial.Serial, earlier.Serial, long.Serial, unknown.Serial}

	clock.pass(2 * day) // they ended after an hour: the grace has an hour to go
	care(t, a)
	ownCRL(t, dir).expect(2, all...)
	clock.pass(day)
	care(t, a) // a CRL after their end lists them
	ownCRL(t, dir).expect(3, all...)
	clock.pass(time.Hour)
	care(t, a) // once a day
	ownCRL(t, dir).expect(3, all...)
	clock.pass(day)
	care(t, a)
	ownCRL(t, dir).expect(4, long.Serial, unknown.Serial)
	checkTrust(t, a, dir)
	openssl(t, "verify", "-x509_strict", "-crl_check_all", "-attime", fmt.Sprint(clock.now().Unix()), "-CAfile", filepath.Join(dir, "ca_crt.pem"),
		"-CRLfile", filepath.Join(dir, "ca_crl.pem"), filepath.Join(dir, "ca_crt.pem"))
	clock.pass(365 * day)
	care(t, a)
	clock.pass(day)
	care(t, a)
	ownCRL(t, dir).expect(6, unknown.Serial)
	// What has left may be revoked again: it is listed once.
	revoke(t, a, byName, byName)
	ownCRL(t, dir).expect(7, unknown.Serial, byName.Serial)
}

// TestInventoryThatCannotBeRead is read again a minute later, not an hour.
func TestInventoryThatCannotBeRead(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	clock := newCalendar()
	o := directory.Options{Now: clock.now, Uptime: clock.uptime, KeepExpired: time.Hour}
	a := open(t, dir, o)
	cert := target(sign(t, a, "web.example.com"))
	revoke(t, a, ca.Target{Serial: cert.Serial})
	clock.pass(day - time.Minute)
	revoke(t, a, ca.Target{Serial: "0A0B"}) // a CRL after its end
	inventory, hidden := filepath.Join(dir, "inventory.txt"), filepath.Join(dir, "hidden")
	rename := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	rename(inventory, hidden)
	if err := a.Care(t.Context()); !errors.Is(err, node.ErrUnavailable) {
		t.Fatalf("Care without an inventory: %v", err)
	}
	rename(hidden, inventory)
	clock.pass(time.Minute) // the first pruning
	care(t, a)
	ownCRL(t, dir).expect(3, "0A0B")
}

// TestForeignCRLRunsOut: another issuer's CRL can't be renewed by espm, so it says so.
func TestForeignCRLRunsOut(t *testing.T) {
	dir := fixture(t, "setup")
	root := readCRLs(t, filepath.Join(dir, "ca_crl.pem"))[1]
	clock := &calendar{Time: root.NextUpdate.Add(-31 * day)}
	log, hook := logtest.NewNullLogger()
	a := open(t, dir, directory.Options{Now: clock.now, Log: log})
	for _, step := range []struct {
		pass time.Duration
		want logrus.Level // Panic: silence
	}{
		{0, logrus.PanicLevel}, {2 * day, logrus.WarnLevel}, {time.Hour, logrus.PanicLevel}, {day, logrus.WarnLevel},
		{30 * day, logrus.ErrorLevel}, {time.Minute, logrus.PanicLevel}, {day, logrus.ErrorLevel},
	} {
		clock.pass(step.pass)
		hook.Reset()
		care(t, a)
		got := logrus.PanicLevel
		for _, e := range hook.AllEntries() {
			if e.Data["issuer"] == root.Issuer.String() {
				got = e.Level
			}
		}
		if got != step.want {
			t.Errorf("%v before its end: level %v, want %v", root.NextUpdate.Sub(clock.now()), got, step.want)
		}
	}
}

// TestOldNumber: the folder's own file remembers the number of the last CRL.
func TestOldNumber(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	old := read(t, dir, "ca_crl.pem")
	a := open(t, dir, directory.Options{})
	revoke(t, a, ca.Target{Serial: "0A0B"})
	care(t, a)
	a = reopen(t, a, dir, directory.Options{})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "ca_crl.pem"), old)
	_, err := tryOpen(dir, directory.Options{})
	if err == nil || !strings.Contains(err.Error(), "has number 0, but there was one with number 1 before") {
		t.Errorf("Open: %v, want a refusal", err)
	}
	if err := os.Remove(filepath.Join(dir, "espm_crl_number")); err != nil {
		t.Fatal(err)
	}
	open(t, dir, directory.Options{})
}

// TestCopyThatCannotBeWritten does not stop the others, holds back the
// receipts, and does not have CRL after CRL signed. Status tells.
func TestCopyThatCannotBeWritten(t *testing.T) {
	dir := create(t, directory.CreateOptions{Key: ca.ECP256})
	good := filepath.Join(t.TempDir(), "crl.pem")
	missing := filepath.Join(t.TempDir(), "absent", "crl.pem")
	disk := &faulty{failAt: -1}
	clock := newCalendar()
	a := open(t, dir, directory.Options{Publish: []string{missing, good}, Disk: disk, Now: clock.now})
	since := clock.now()
	cert := sign(t, a, "web.example.com")
	disk.arm(-1, false, false)
	for range 3 {
		clock.pass(time.Minute)
		receipts, err := a.Revoke(t.Context(), []ca.Target{target(cert)})
		if !errors.Is(err, node.ErrUnavailable) || len(receipts) != 0 {
			t.Errorf("Revoke: %v, %v", receipts, err)
		}
		if err := a.Care(t.Context()); err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("Care: %v, want an error that names %s", err, missing)
		}
		ownCRL(t, dir).expect(1, target(cert).Serial)
	}
	for _, name := range []string{"ca_crl.pem", "crl.pem"} {
		wanted := 1
		if name == "crl.pem" {
			wanted = 1 + 6 // the good one once, the missing one each time
		}
		if n := count(disk.steps, "write "+name); n != wanted {
			t.Errorf("%s was written %d times, want %d: %q", name, n, wanted, disk.steps)
		}
	}
	checkFiles(t, a, []ca.CRLFile{
		{Path: filepath.Join(dir, "ca_crl.pem"), Since: since.Add(time.Minute)},
		{Path: missing, Error: "no such file or directory", Since: since},
		{Path: good, Since: since},
	})
	if err := os.Mkdir(filepath.Dir(missing), 0o755); err != nil {
		t.Fatal(err)
	}
	clock.pass(time.Minute)
	care(t, a)
	if read(t, missing) != read(t, good) || read(t, good) != read(t, dir, "ca_crl.pem") {
		t.Error("the copies differ")
	}
	checkFiles(t, a, []ca.CRLFile{
		{Path: filepath.Join(dir, "ca_crl.pem"), Since: since.Add(time.Minute)},
		{Path: missing, Since: clock.now()},
		{Path: good, Since: since},
	})
	if got := revoke(t, a, target(cert))[0].CRLNumber; got != "1" {
		t.Errorf("CRL number %s, want 1", got)
	}
}

func count(steps []string, step string) int {
	return len(slices.DeleteFunc(slices.Clone(steps), func(s string) bool { return s != step }))
}

func checkFiles(t *testing.T, a *directory.Authority, want []ca.CRLFile) {
	t.Helper()
	status, err := a.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range status.Files {
		if got.Path != want[i].Path || !got.Since.Equal(want[i].Since) || (got.Error == "") != (want[i].Error == "") || !strings.Contains(got.Error, want[i].Error) {
			t.Errorf("file %d: %+v, want %+v", i, got, want[i])
		}
	}
}

func TestStatus(t *testing.T) {
	dir := fixture(t, "setup")
	a := open(t, dir, directory.Options{CRLValidity: 90 * day})
	revoke(t, a, ca.Target{Serial: "0A0B"}, ca.Target{Serial: "0A0C"})
	got, err := a.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	crls := readCRLs(t, filepath.Join(dir, "ca_crl.pem"))
	want := ca.CRLStatus{
		Issuer: crls[0].Issuer.String(), Number: crls[0].Number.String(), Entries: 2, Recent: 2, EntryBytes: got.CRL.EntryBytes, ThisUpdate: crls[0].ThisUpdate, NextUpdate: now().Add(90 * day),
	}
	if got.CRL != want || got.Subject != want.Issuer || got.NotAfter.Before(now()) || got.Bytes != len(read(t, dir, "ca_crl.pem")) {
		t.Errorf("status %+v, want CRL %+v", got, want)
	}
	root := ca.CRLStatus{Issuer: crls[1].Issuer.String(), Number: crls[1].Number.String(), ThisUpdate: crls[1].ThisUpdate, NextUpdate: crls[1].NextUpdate}
	if len(got.Foreign) != 1 || got.Foreign[0] != root {
		t.Errorf("foreign %+v, want %+v", got.Foreign, root)
	}
}

// TestStatusTellsTheEntriesSize: by that much, and no more, does the download grow.
func TestStatusTellsTheEntriesSize(t *testing.T) {
	a := open(t, fixture(t, "setup"), directory.Options{})
	size := func(targets ...ca.Target) ca.Status {
		revoke(t, a, targets...)
		got, err := a.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	targets := make([]ca.Target, 100)
	for i := range targets {
		targets[i].Serial = a.NewSerial()
	}
	few, many := size(targets[:2]...), size(targets...)
	grown, told := many.Bytes-few.Bytes, many.CRL.EntryBytes-few.CRL.EntryBytes
	if d := grown - told; d < -30 || d > 30 {
		t.Errorf("98 entries more take %d bytes, Status tells %d", grown, told)
	}
	if few.CRL.EntryBytes > few.Bytes/4 {
		t.Errorf("2 entries take %d of %d bytes", few.CRL.EntryBytes, few.Bytes)
	}
}
