package bootstrap

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/espm-project/espm/internal/node"
)

// Delivery is a bundle as one document for an instance.
type Delivery struct {
	Certname   node.Certname
	UID        string
	Serial     string
	RequestID  string
	Bundle     Bundle
	Recipients []age.Recipient // who can decrypt it; none: the document is not encrypted

	// Only user data uses these fields.
	Script   []byte // the script of packaging/bootstrap, or the site's own
	Identity string // the path of the instance's age identity; required with Recipients
}

// ParseRecipients parses age recipients, age1..., to which one document can be encrypted.
func ParseRecipients(names []string) ([]age.Recipient, error) {
	var all []age.Recipient
	for _, s := range names {
		some, err := age.ParseRecipients(strings.NewReader(s))
		if err != nil || len(some) != 1 {
			return nil, fmt.Errorf("%q is not an age recipient: age1..., as age-keygen prints it", s)
		}
		all = append(all, some...)
	}
	if len(all) == 0 {
		return nil, nil
	}
	_, err := age.Encrypt(io.Discard, all...) // fails if the kinds of recipients can't be mixed
	return all, err
}

// Tar returns the bundle's files as a tar archive. With Recipients, the archive is gzipped and
// encrypted with age.
func (d Delivery) Tar() ([]byte, error) {
	if len(d.Recipients) > 0 {
		return d.sealed()
	}
	return d.archive()
}

func (d Delivery) archive() ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	now := time.Now().Truncate(time.Second) // not in the future: GNU tar warns about such a time, and a fraction may be rounded up
	for _, dir := range dirs {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir.path + "/", Mode: int64(dir.mode), ModTime: now}); err != nil {
			return nil, err
		}
	}
	for _, f := range d.Bundle.files(d.Certname) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: int64(f.mode), Size: int64(len(f.data)), ModTime: now}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

// sealed compresses before it encrypts, as encrypted data can't be compressed.
func (d Delivery) sealed() ([]byte, error) {
	archive, err := d.archive()
	if err != nil {
		return nil, err
	}
	archive, err = compress(archive)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, d.Recipients...)
	if err != nil {
		return nil, fmt.Errorf("sealing the bundle of %q: %w", d.Certname, err)
	}
	if _, err := w.Write(archive); err != nil {
		return nil, err
	}
	err = w.Close()
	return out.Bytes(), err
}

func compress(data []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	err = w.Close()
	return out.Bytes(), err
}

// JSON returns one object whose values are all strings. The object has the parts of the bundle or, with
// Recipients, the encrypted archive in base64. The object also has the fields by which a caller identifies
// the node.
func (d Delivery) JSON() ([]byte, error) {
	doc := map[string]string{
		"certname": string(d.Certname), "uid": d.UID, "serial": d.Serial, "request_id": d.RequestID, "master_url": d.Bundle.MasterURL,
	}
	if len(d.Recipients) > 0 {
		sealed, err := d.sealed()
		if err != nil {
			return nil, err
		}
		doc["sealed"] = base64.StdEncoding.EncodeToString(sealed)
	} else {
		doc["certificate"] = string(d.Bundle.CertificatePEM)
		doc["ca"] = string(d.Bundle.CAPEM)
		doc["puppet_conf"] = d.Bundle.PuppetConf
		for key, value := range map[string][]byte{"private_key": d.Bundle.PrivateKeyPEM.Bytes(), "crl": d.Bundle.CRLPEM} {
			if value != nil {
				doc[key] = string(value)
			}
		}
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	return append(out, '\n'), err
}
