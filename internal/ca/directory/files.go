package directory

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/pemfile"
)

// crlFile is ca_crl.pem or a published copy of it.
type crlFile struct {
	path    string
	stamp   pemfile.Stamp // when the file was last read or written
	current bool          // the file had the current CRL then

	mu    sync.Mutex
	err   error     // of the last write
	since time.Time // when the writes began to fail or to succeed
}

// differs returns the content of the file if it is not want, but the same content only
// once. Unless thorough, it does not read a file whose stamp is unchanged.
func (f *crlFile) differs(want []byte, thorough bool) ([]byte, error) {
	id, err := pemfile.StampOf(f.path)
	if err != nil {
		f.stamp, f.current = pemfile.Stamp{}, false
		return nil, err
	}
	if id == f.stamp && !thorough {
		return nil, nil
	}
	if pemfile.HasContent(f.path, want) { // mostly so: a copy of a large CRL is not to be in memory each minute
		f.stamp, f.current = id, true
		return nil, nil
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		f.stamp, f.current = pemfile.Stamp{}, false
		return nil, err
	}
	known := id == f.stamp && !f.current
	f.stamp, f.current = id, bytes.Equal(data, want)
	if f.current || known {
		return nil, nil
	}
	return data, nil
}

// write replaces the content of the file. A failed write does not change the stamp, so that checkFiles does
// not report the old CRL in the file as a change by another program.
func (a *crlKeeper) write(f *crlFile, data []byte) error {
	f.current = false
	err := a.replace(f.path, data)
	if err == nil {
		f.current = true
		f.stamp, _ = pemfile.StampOf(f.path) // after an error, checkFiles reads the file again
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.since.IsZero() || (f.err == nil) != (err == nil) {
		f.since = a.opts.Now().UTC()
		if err == nil && f.err != nil {
			a.opts.Log.WithField("path", f.path).Info("the CRL can be written again")
		}
	}
	f.err = err
	return err
}

// replace replaces the content that a reader of path gets. A symbolic link stays.
func (a *crlKeeper) replace(path string, data []byte) error {
	target, err := durable.Target(path)
	if err != nil {
		return err
	}
	if err := a.opts.Disk.WriteFile(target, data, 0o644); err != nil {
		return err
	}
	after, err := durable.Target(path)
	if err == nil && after != target {
		err = fmt.Errorf("write %s: another program changed the symbolic link meanwhile, from %s to %s; espm writes the file again", path, target, after)
	}
	return err
}

// writeOwn writes ca_crl.pem. d is the difference between next and the last CRL.
func (a *crlKeeper) writeOwn(next *crlChain, d delta) error {
	failed := a.write(a.own, next.pem)
	a.unsynced = failed != nil
	if failed != nil {
		// The file may have the new CRL nevertheless, but not durably.
		data, err := os.ReadFile(a.own.path)
		if err != nil || !bytes.Equal(data, next.pem) {
			return unavailable(failed)
		}
	}
	a.crl.Store(next)
	a.listed.change(d)
	for _, f := range a.copies {
		f.current = false
	}
	return unavailable(failed)
}

// publish writes every copy that is not current. It writes the others even if one
// fails. The error names those that failed.
func (a *crlKeeper) publish(c *crlChain) error {
	ended := a.checkEnd(c)
	var errs []error
	for _, f := range a.copies {
		if f.current {
			continue
		}
		if ended != nil {
			errs = append(errs, fmt.Errorf("publish CRL: %s: %w", f.path, ended))
			continue
		}
		if err := a.write(f, c.pem); err != nil {
			errs = append(errs, fmt.Errorf("publish CRL: %w", err))
		}
	}
	return unavailable(errors.Join(errs...))
}

// loadCRL reads ca_crl.pem and its copies at the start. It refuses a CRL that is older
// than a published copy or than the last noted number: with it, revoked
// certificates would be valid again. It puts off the merge and the publication of the files while the clock is not
// believed: Care does both.
func (a *crlKeeper) loadCRL() (putOff bool, err error) {
	data, err := a.own.differs(nil, true)
	if err != nil {
		return false, fmt.Errorf("read CRL: %w", err)
	}
	own, err := parseCRLs(data, a.chain)
	if err != nil {
		return false, fmt.Errorf("CRL %s: %w", a.own.path, err)
	}
	c := own.crlChain
	if a.own.current = len(own.more) == 0; !a.own.current {
		c = c.withForeign(c.foreign)
	}
	a.crl.Store(c)
	a.listed.start(own.listed)
	a.warnOfBad(c.foreign, "espm publishes it, as it has no other: agents refuse the chain until a valid one is put into the file")
	copies := make([]*crlContents, len(a.copies))
	const advice = "was the CA directory restored from an old backup?"
	for i, f := range a.copies {
		data, err := f.differs(c.pem, true)
		if err != nil || data == nil {
			continue // publish writes it, and reports errors
		}
		copied, err := parseCRLs(data, a.chain)
		if err != nil {
			continue
		}
		if copies[i] = copied; copied.number.Cmp(c.number) > 0 {
			return false, fmt.Errorf("the CRL published at %s has number %d, later than %d of %s: %s Copy the later one over the other",
				f.path, copied.number, c.number, a.own.path, advice)
		}
	}
	if noted := a.notedNumber(); noted.Cmp(c.number) > 0 {
		return false, fmt.Errorf("the CRL %s has number %d, but there was one with number %d before (see %s): %s"+
			" Restore the later one; where it is lost, what it revoked must be revoked again, and removing %s lets espm start",
			a.own.path, c.number, noted, a.file(numberFile), advice, a.file(numberFile))
	}
	a.opts.Clock.Learn(time.Time{}, c.thisUpdate)
	if a.opts.Clock.Check() == nil {
		return false, a.mergeFound(own, copies)
	}
	for _, f := range append([]*crlFile{a.own}, a.copies...) {
		f.stamp = pemfile.Stamp{} // Care reads the file again
	}
	return true, nil
}

// numberFile has the number of a recent CRL: Care writes it once a minute.
const numberFile = "espm_crl_number"

func (a *crlKeeper) notedNumber() *big.Int {
	data, err := os.ReadFile(a.file(numberFile))
	if errors.Is(err, fs.ErrNotExist) {
		return new(big.Int)
	}
	n, ok := new(big.Int).SetString(string(bytes.TrimSpace(data)), 10)
	if err != nil || !ok {
		a.opts.Log.WithError(err).WithFields(logrus.Fields{"path": a.file(numberFile)}).Warn("the file has no CRL number; espm ignores it")
		return new(big.Int)
	}
	return n
}

// noteNumber writes numberFile. Care does this, not Revoke: the number only has to detect old backups,
// so it may be a minute late.
func (a *caretaker) noteNumber(n *big.Int) error {
	if a.care.stored != nil && a.care.stored.Cmp(n) == 0 {
		return nil
	}
	if err := a.opts.Disk.WriteFile(a.file(numberFile), []byte(n.String()+"\n"), 0o644); err != nil {
		return unavailable(err)
	}
	a.care.stored = n
	return nil
}
