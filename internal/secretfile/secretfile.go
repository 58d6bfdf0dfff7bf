// Package secretfile reads files that hold a secret, a private key or a PIN,
// and refuses files that other users can read.
package secretfile

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"github.com/espm-project/espm/internal/shell"
)

// MaxSize is the longest file. A chain with an RSA key of 16384 bits has 20 KiB.
const MaxSize = 64 << 10

// Read returns the content of a file of at most MaxSize bytes, if its mode is safe:
//   - Others have no access.
//   - Its group may not write it. The group may read it only if it is one of Puppet's:
//     Puppet's keys have the mode 0640 (private-key-perms in Puppet Server's certificate_authority.clj), and
//     the group puppet or pe-puppet or, without Puppet Server, root.
//
// what names the file in errors, such as "CA key". The error of an unsafe mode has the
// command that corrects it. Errors of the operating system are wrapped.
func Read(what, path string) (data []byte, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("cannot read %s %s: %w; espm must run as its owner or in its group", what, path, fs.ErrPermission)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", what, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat() // of the open file, as the name may lead to another file now
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", what, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("cannot read %s: %s is no regular file", what, path)
	}
	if err := check(what, path, info, groupName); err != nil {
		return nil, err
	}
	data, err = io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", what, err)
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("cannot read %s: %s has more than %d bytes", what, path, MaxSize)
	}
	return data, nil
}

// CheckMode returns an error if a file or folder has one of these permissions, such as
// 0o002. The error has the command that corrects it. A missing file is no error.
func CheckMode(what, path string, forbidden fs.FileMode) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return refused(what, path, "open to everybody", mode, mode&^forbidden)
	}
	return nil
}

// puppetGroups are the groups of Puppet Server's user; 0 is root.
var puppetGroups = []string{"puppet", "pe-puppet"}

func check(what, path string, info fs.FileInfo, groupName func(gid uint32) string) error {
	mode := info.Mode().Perm()
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s %s: its group is unknown", what, path)
	}
	puppets := st.Gid == 0 || slices.Contains(puppetGroups, groupName(st.Gid))
	mended := mode & 0o600
	if puppets {
		mended = mode & 0o640
	}
	switch {
	case mode&0o007 != 0:
		return refused(what, path, "open to everybody", mode, mended)
	case mode&0o030 != 0, mode&0o040 != 0 && !puppets:
		return refused(what, path, "open to its group", mode, mended)
	}
	return nil
}

func refused(what, path, open string, mode, mended fs.FileMode) error {
	return fmt.Errorf("%s %s is %s (mode %04o); mend it: chmod %04o %s", what, path, open, mode, mended, shell.Quote(path))
}

// groupName returns "" for a group without one.
func groupName(gid uint32) string {
	g, err := user.LookupGroupId(strconv.FormatUint(uint64(gid), 10))
	if err != nil {
		return ""
	}
	return g.Name
}

// X509KeyPair returns a certificate, with its chain, and its key; key and certificate are PEM.
func X509KeyPair(what, certificate, key string) (tls.Certificate, error) {
	keyPEM, err := Read(what, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	chain, err := os.ReadFile(certificate)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(chain, keyPEM)
}
