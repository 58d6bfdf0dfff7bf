package site

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
)

// Exists reports whether path exists. A symbolic link exists even if its target does not.
func Exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// GiveTo changes the owner of a file, or of a folder with all in it. Another user who may write there
// can't use a symbolic link to make it change files outside of the path's folder.
func GiveTo(path string, uid, gid int) (err error) {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return fs.WalkDir(root.FS(), filepath.Base(path), func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(name, uid, gid)
	})
}

// UsableGroup returns the group if it exists and this user may set it on files, else "".
func UsableGroup(name string) string {
	g, err := user.LookupGroup(name)
	if err != nil {
		return ""
	}
	mine, err := os.Getgroups()
	id, convErr := strconv.Atoi(g.Gid)
	if os.Geteuid() != 0 && (errors.Join(err, convErr) != nil || !slices.Contains(append(mine, os.Getegid()), id)) {
		return ""
	}
	return name
}
