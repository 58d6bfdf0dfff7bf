// Package backup reads and writes the format of a backup: a tar archive that any tar can
// unpack. Its last file, MANIFEST.json, lists the others with their SHA-256, so that Read detects an
// incomplete or damaged archive. That protects
// against accidents, not against attackers, who can write a manifest of their own.
//
//	espm.yaml      the configuration
//	espm.db        the store
//	ca/...         the CA folder, if espm owns one; its private key only on request
//	MANIFEST.json
package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"
)

// The names in an archive.
const (
	StoreName    = "espm.db"
	ConfigName   = "espm.yaml"
	CAFolder     = "ca/"
	CAKeyName    = CAFolder + "ca_key.pem"
	manifestName = "MANIFEST.json"
)

// format is the version of this format.
const format = 1

// maxManifest is the longest manifest. A file needs about 200 bytes, and a CA may have a million files.
const maxManifest = 512 << 20

// Manifest describes a backup.
type Manifest struct {
	Format     int            `json:"format"`
	CreatedAt  time.Time      `json:"created_at"`
	Version    string         `json:"espm_version"`
	Authority  string         `json:"authority"`              // directory or puppetserver
	PrivateKey bool           `json:"private_key"`            // ca_key.pem, which signs, is in it
	KeyInToken bool           `json:"key_in_token,omitempty"` // so no backup has it
	Keys       []string       `json:"private_keys,omitempty"` // files with a private key: that one, a root's
	Revision   int64          `json:"revision"`               // of the store
	Records    map[string]int `json:"records"`                // in the store, by kind
	Files      []File         `json:"files"`
}

// File is one file of a backup.
type File struct {
	Name   string      `json:"name"`
	Mode   fs.FileMode `json:"mode"`
	Size   int64       `json:"size"`
	SHA256 string      `json:"sha256"`
}

// Writer writes a backup.
type Writer struct {
	tar      *tar.Writer
	Manifest Manifest // written by Close
}

// NewWriter returns a Writer. The backup has the time now.
func NewWriter(w io.Writer, m Manifest) *Writer {
	m.Format = format
	return &Writer{tar.NewWriter(w), m}
}

// Add adds a file of exactly size bytes.
func (w *Writer) Add(name string, mode fs.FileMode, size int64, r io.Reader) error {
	sum := sha256.New()
	err := w.put(name, mode, size, io.TeeReader(r, sum))
	if err != nil {
		return fmt.Errorf("backup of %s: %w", name, err)
	}
	w.Manifest.Files = append(w.Manifest.Files, File{name, mode.Perm(), size, hex.EncodeToString(sum.Sum(nil))})
	return nil
}

func (w *Writer) put(name string, mode fs.FileMode, size int64, r io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode.Perm()), Size: size, ModTime: w.Manifest.CreatedAt, Format: tar.FormatPAX}
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(w.tar, io.LimitReader(r, size))
	if err == nil && n < size {
		err = fmt.Errorf("it has %d bytes instead of %d", n, size)
	}
	return err
}

// Close writes the manifest. Without it, the backup is invalid.
func (w *Writer) Close() error {
	data, err := json.MarshalIndent(w.Manifest, "", "  ") // #nosec G117 -- names of files, no keys
	if err != nil {
		return err
	}
	if err := w.put(manifestName, 0o600, int64(len(data)), bytes.NewReader(data)); err != nil {
		return err
	}
	return w.tar.Close()
}

// Read reads a whole backup and checks it. It calls each with each file, which may leave
// a part unread. The caller must not use the files
// before Read has returned without an error.
func Read(r io.Reader, each func(f File, r io.Reader) error) (Manifest, error) {
	m, err := read(r, each)
	if err != nil {
		return m, fmt.Errorf("the file is no backup, or damaged: %w", err)
	}
	// Padding may follow the archive's end. It must be read, or the sender gets an error.
	_, err = io.Copy(io.Discard, r)
	return m, err
}

func read(r io.Reader, each func(f File, r io.Reader) error) (m Manifest, err error) {
	archive := tar.NewReader(r)
	var have []File
	for {
		h, err := archive.Next()
		switch {
		case errors.Is(err, io.EOF):
			return m, fmt.Errorf("it is cut short: it has no %s at its end", manifestName)
		case err != nil:
			return m, err
		case h.Typeflag != tar.TypeReg || !sound(h.Name):
			return m, fmt.Errorf("it holds %q, which has no place in a backup", h.Name)
		}
		if h.Name == manifestName {
			return m, m.check(io.LimitReader(archive, maxManifest), have, archive)
		}
		f := File{Name: h.Name, Mode: fs.FileMode(h.Mode & 0o777), Size: h.Size} // #nosec G115 -- of 9 bits
		sum := sha256.New()
		if err := readWhole(f, archive, sum, each); err != nil {
			return m, fmt.Errorf("%s: %w", f.Name, err)
		}
		f.SHA256 = hex.EncodeToString(sum.Sum(nil))
		have = append(have, f)
	}
}

func readWhole(f File, r io.Reader, sum hash.Hash, each func(f File, r io.Reader) error) error {
	body := io.TeeReader(r, sum)
	if err := each(f, body); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, body)
	return err
}

// sound reports whether a name stays in the folder that a backup is restored to.
func sound(name string) bool {
	switch {
	case name == StoreName, name == ConfigName, name == manifestName:
		return true
	}
	rest, ok := strings.CutPrefix(name, CAFolder)
	return ok && fs.ValidPath(rest) && rest != "." && path.Clean(name) == name
}

// check compares the manifest with the files of the archive.
func (m *Manifest) check(r io.Reader, have []File, archive *tar.Reader) error {
	if err := json.NewDecoder(r).Decode(m); err != nil {
		return fmt.Errorf("%s: %w", manifestName, err)
	}
	if m.Format != format {
		return fmt.Errorf("it has form %d, this espm knows %d", m.Format, format)
	}
	if len(have) != len(m.Files) {
		return fmt.Errorf("it has %d files, its manifest lists %d", len(have), len(m.Files))
	}
	for i, f := range have {
		if f != m.Files[i] {
			return fmt.Errorf("%s is not as its manifest says: SHA-256 %s, %d bytes, mode %04o", f.Name, f.SHA256, f.Size, f.Mode)
		}
	}
	if _, err := archive.Next(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("something follows its manifest (%v)", err)
	}
	return nil
}
