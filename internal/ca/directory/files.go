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

	"github.com/espm-project/espm/internal/pemfile"
)

// crlFile is ca_crl.pem or a published copy of it.
type crlFile struct {
	path string
	seen pemfile.Stamp // when the file was last read or written
	same bool          // it held then what it is to hold

	mu    sync.Mutex
	err   error     // why it can't be written
	since time.Time // since when it is so
}

// differs returns what stands in the file, if that is not want and was not
// returned before. Unless thorough, a file that looks untouched is not read.
func (f *crlFile) differs(want []byte, thorough bool) ([]byte, error) {
	id, err := pemfile.StampOf(f.path)
	if err != nil {
		f.seen, f.same = pemfile.Stamp{}, false
		return nil, err
	}
	if id == f.seen && !thorough {
		return nil, nil
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		f.seen, f.same = pemfile.Stamp{}, false
		return nil, err
	}
	known := id == f.seen && !f.same
	f.seen, f.same = id, bytes.Equal(data, want)
	if f.same || known {
		return nil, nil
	}
	return data, nil
}

// write makes the file what it is to be. A failed write leaves the stamp as it was, so that the old
// CRL in the file is not taken for a change by another program.
func (a *crlKeeper) write(f *crlFile, data []byte) error {
	f.same = false
	err := a.opts.Disk.WriteFile(f.path, data, 0o644)
	if err == nil {
		f.same = true
		f.seen, _ = pemfile.StampOf(f.path) // if not, it is read again
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

// put writes ca_crl.pem; d is what next lists more and less than the last.
func (a *crlKeeper) put(next *crlChain, d delta) error {
	failed := a.write(a.own, next.pem)
	a.unsynced = failed != nil
	if failed != nil {
		// The new file may be there nevertheless, though it need not last.
		data, err := os.ReadFile(a.own.path)
		if err != nil || !bytes.Equal(data, next.pem) {
			return unavailable(failed)
		}
	}
	a.crl.Store(next)
	a.listed.change(d)
	for _, f := range a.copies {
		f.same = false
	}
	return unavailable(failed)
}

// publish brings every copy up to date. One that can't be written does not
// stop the others; the error names it.
func (a *crlKeeper) publish(c *crlChain) error {
	var errs []error
	for _, f := range a.copies {
		if f.same {
			continue
		}
		if err := a.write(f, c.pem); err != nil {
			errs = append(errs, fmt.Errorf("publish CRL: %w", err))
		}
	}
	return unavailable(errors.Join(errs...))
}

// loadCRL reads what an earlier run left. It refuses to go on from a CRL that is
// older than one that was published or that stood here before: revoked
// certificates would come back to life.
func (a *crlKeeper) loadCRL() error {
	data, err := a.own.differs(nil, true)
	if err != nil {
		return fmt.Errorf("read CRL: %w", err)
	}
	held, err := parseCRLs(data, a.chain)
	if err != nil {
		return fmt.Errorf("CRL %s: %w", a.own.path, err)
	}
	c := held.crlChain
	if a.own.same = len(held.more) == 0; !a.own.same {
		c = c.withForeign(c.foreign)
	}
	a.crl.Store(c)
	a.listed.start(held.listed)
	a.warnOfBad(c.foreign, "no other is known, and it is published: agents refuse the chain until a good one is put into the file")
	copies := make([]*crlContents, len(a.copies))
	const advice = "was the CA directory restored from an old backup?"
	for i, f := range a.copies {
		data, err := f.differs(c.pem, true)
		if err != nil || data == nil {
			continue // one that can't be read is met again when it is written
		}
		copied, err := parseCRLs(data, a.chain)
		if err != nil {
			continue
		}
		if copies[i] = copied; copied.number.Cmp(c.number) > 0 {
			return fmt.Errorf("the CRL published at %s has number %d, later than %d of %s: %s Copy the later one over the other",
				f.path, copied.number, c.number, a.own.path, advice)
		}
	}
	if noted := a.notedNumber(); noted.Cmp(c.number) > 0 {
		return fmt.Errorf("the CRL %s has number %d, but there was one with number %d before (see %s): %s"+
			" Restore the later one; where it is lost, what it revoked must be revoked again, and removing %s lets espm start",
			a.own.path, c.number, noted, a.file(numberFile), advice, a.file(numberFile))
	}
	return a.mergeFound(held, copies)
}

// numberFile has the number of the last CRL, as far as it was noted.
const numberFile = "espm_crl_number"

func (a *crlKeeper) notedNumber() *big.Int {
	data, err := os.ReadFile(a.file(numberFile))
	if errors.Is(err, fs.ErrNotExist) {
		return new(big.Int)
	}
	n, ok := new(big.Int).SetString(string(bytes.TrimSpace(data)), 10)
	if err != nil || !ok {
		a.opts.Log.WithError(err).WithFields(logrus.Fields{"path": a.file(numberFile)}).Warn("holds no CRL number; taken as absent")
		return new(big.Int)
	}
	return n
}

// noteNumber is not a part of Revoke: a backup is older than a minute.
func (a *caretaker) noteNumber(n *big.Int) error {
	if a.care.noted != nil && a.care.noted.Cmp(n) == 0 {
		return nil
	}
	if err := a.opts.Disk.WriteFile(a.file(numberFile), []byte(n.String()+"\n"), 0o644); err != nil {
		return unavailable(err)
	}
	a.care.noted = n
	return nil
}
