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

// Exists tells whether there is something at path; a link counts, wherever it leads.
func Exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// GiveTo gives a file, or a folder and what is in it, to an owner. Who may write there
// can't lead it out of the folder that the path is in, by a link made meanwhile.
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

// UsableGroup returns the group if it exists and this user may give it files.
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
