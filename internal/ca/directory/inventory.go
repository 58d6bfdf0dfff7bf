package directory

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
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

// parseEntry reads a line that any version of Puppet wrote. `puppetserver ca setup` writes
// serials in lower case.
func parseEntry(line string) (entry, error) {
	var e entry
	fields := strings.SplitN(line, " ", 4)
	if len(fields) != 4 {
		return e, errors.New("inventory line: want serial, two times and a subject")
	}
	serial, err := parseSerial(fields[0])
	if err != nil {
		return e, err
	}
	e.Serial = serial
	if e.NotBefore, err = time.Parse(inventoryTime, fields[1]); err != nil {
		return e, fmt.Errorf("inventory line: %w", err)
	}
	if e.NotAfter, err = time.Parse(inventoryTime, fields[2]); err != nil {
		return e, fmt.Errorf("inventory line: %w", err)
	}
	if e.Subject = fields[3]; !strings.HasPrefix(e.Subject, "/") {
		return e, fmt.Errorf("inventory line: subject %.80q must start with a slash", e.Subject)
	}
	return e, nil
}

func parseSerial(field string) (node.Serial, error) {
	digits, ok := strings.CutPrefix(field, "0x")
	// RFC 5280 section 4.1.2.2: at most 20 octets. SetString would accept a sign and underscores.
	if !ok || len(digits) == 0 || len(digits) > 40 || strings.Trim(digits, "0123456789abcdefABCDEF") != "" {
		return "", fmt.Errorf("inventory line: %.80q is no serial number", field)
	}
	n, _ := new(big.Int).SetString(digits, 16)
	return node.SerialOf(n), nil
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
		if _, err := v.repair(); err != nil {
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

// maxTornLine is how many bytes repair reads to find the start of the last
// line. Puppet's lines are much shorter.
const maxTornLine = 64 << 10

// repair makes the file end with a newline. If the last line has none, repair
// adds it if the line can be parsed. Else the process died while it wrote the line, before
// append returned: repair cuts the line off. It returns the number of bytes cut.
func (v *inventory) repair() (cut int, err error) {
	tail, size, err := readTail(v.path)
	if err != nil {
		return 0, fmt.Errorf("read inventory: %w", err)
	}
	if len(tail) == 0 || tail[len(tail)-1] == '\n' {
		return 0, nil
	}
	last := tail[bytes.LastIndexByte(tail, '\n')+1:]
	if len(last) == maxTornLine {
		return 0, fmt.Errorf("read inventory: the last %d bytes of %s hold no line's end", maxTornLine, v.path)
	}
	if _, err := parseEntry(string(last)); err == nil {
		return 0, v.disk.Append(v.path, []byte("\n"), 0o644)
	}
	return len(last), v.disk.Truncate(v.path, size-int64(len(last)))
}

func readTail(path string) (tail []byte, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	size = st.Size()
	tail = make([]byte, min(size, maxTornLine))
	_, err = f.ReadAt(tail, size-int64(len(tail)))
	return tail, size, err
}
