package vfs

import (
	"errors"
	"fmt"
	"io"
)

// SyncDir makes the names in a directory durable.
func SyncDir(fsys FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync directory %s: %w", dir, err), d.Close())
	}
	return d.Close()
}

// CopyFile copies the content of a file to a new one (mode 0660) and syncs it. The name of the copy
// is durable after SyncDir of its directory. After an error there is no copy, or a part of one.
func CopyFile(fsys FS, from, to string) (err error) {
	src, err := fsys.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := fsys.Create(to, 0o660)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	// Only these two methods: os.File's ReadFrom would bypass a wrapped file.
	if _, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 1<<20)); err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	return dst.Sync()
}
