package directory

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
)

// inventory is Puppet's list of all certificates ever issued, one a line, oldest first.
type inventory struct {
	path string
	disk durable.Disk

	mu   sync.Mutex
	next *group // collects lines while another group is written

	writing sync.Mutex
	suspect bool // an append failed: the file may end in a torn line

	indexing sync.Mutex
	index    map[serialKey]uint64      // subjectHash of all serials in the file; nil: not read yet
	several  map[node.Certname][]entry // the lines of names with more than one; nil: not read yet
}

// group is a set of lines that share one append, hence one fsync.
type group struct {
	lines  bytes.Buffer
	issued map[serialKey]uint64
	done   chan struct{}
	err    error
}

// entry is one line of the inventory.
type entry struct {
	Serial    node.Serial
	NotBefore time.Time
	NotAfter  time.Time
	Subject   string // "/CN=name"
}

const inventoryTime = "2006-01-02T15:04:05UTC"

func inventoryEntry(cert *x509.Certificate) entry {
	return entry{
		Serial:    node.SerialOf(cert.SerialNumber),
		NotBefore: cert.NotBefore,
		NotAfter:  cert.NotAfter,
		Subject:   "/CN=" + cert.Subject.CommonName,
	}
}

// String returns the entry in Puppet Server's form (write-cert-to-inventory! in
// its certificate_authority.clj), without the newline.
func (e entry) String() string {
	return fmt.Sprintf("0x%s %s %s %s", e.Serial,
		e.NotBefore.UTC().Format(inventoryTime), e.NotAfter.UTC().Format(inventoryTime), e.Subject)
}

// append adds an entry, which is durable when append returns. Calls that arrive
// while another append runs share the next append.
func (v *inventory) append(e entry) error {
	v.mu.Lock()
	lead := v.next == nil
	if lead {
		v.next = &group{issued: map[serialKey]uint64{}, done: make(chan struct{})}
	}
	g := v.next
	g.lines.WriteString(e.String() + "\n")
	if key, ok := keyOfSerial(e.Serial); ok {
		note(g.issued, key, subjectHash([]byte(e.Subject)))
	}
	v.mu.Unlock()
	if lead {
		v.writing.Lock()
		v.mu.Lock()
		v.next = nil
		v.mu.Unlock()
		g.err = v.write(g.lines.Bytes())
		v.indexed(g.issued, g.err)
		v.writing.Unlock()
		close(g.done)
	}
	<-g.done
	return g.err
}

func (v *inventory) write(lines []byte) error {
	if v.suspect {
		if _, err := v.endLine(); err != nil {
			return err
		}
		v.suspect = false
	}
	if err := v.disk.Append(v.path, lines, 0o644); err != nil {
		v.suspect = true
		return fmt.Errorf("append to inventory: %w", err)
	}
	return nil
}

// endLine adds a newline to the file if the last line has none, and reports whether it did. It does not cut the line
// off, even if the line can't be read: another program may have written it.
func (v *inventory) endLine() (added bool, err error) {
	f, err := v.open()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || end == 0 {
		return false, err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], end-1); err != nil || last[0] == '\n' {
		return false, err
	}
	return true, v.disk.Append(v.path, []byte("\n"), 0o644)
}

// open opens the file for reading. If the file is missing, the error says how to mend that.
func (v *inventory) open() (*os.File, error) {
	f, err := os.Open(v.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read inventory: %w: the file lists all certificates that the CA issued. Restore it from a backup. "+
			"If there is no backup, make an empty file for the user that runs espm: install -m 644 -o USER /dev/null %s. "+
			"Without the old lines, espm does not find certificates that have no file in signed/, and entries of expired certificates stay on the CRL",
			err, v.path)
	}
	if err != nil {
		return nil, fmt.Errorf("read inventory: %w", err)
	}
	return f, nil
}
