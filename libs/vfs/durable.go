package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
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

// WriteFile replaces a small file atomically and durably: it is written and synced under a temporary
// name, renamed, and its directory is synced. After an error the old content stands, or the new one.
func WriteFile(fsys FS, name string, content []byte, perm fs.FileMode) error {
	tmp := name + ".tmp"
	f, err := fsys.Create(tmp, perm)
	if err != nil {
		return err
	}
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return err
	}
	return SyncDir(fsys, path.Dir(name))
}

// CopyFile copies the content of a file to a new one (mode 0660), syncs it and returns its size. The
// name of the copy is durable after SyncDir of its directory. After an error there is no copy, or a
// part of one.
func CopyFile(fsys FS, from, to string) (int64, error) {
	info, err := fsys.Stat(from)
	if err != nil {
		return 0, err
	}
	return info.Size(), CopyPart(fsys, from, to, info.Size())
}

// CopyPart is CopyFile for the first n bytes of a file that may be growing.
func CopyPart(fsys FS, from, to string, n int64) (err error) {
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
	buf := make([]byte, min(n, 1<<20))
	for off := int64(0); off < n; {
		b := buf[:min(int64(len(buf)), n-off)]
		if m, err := src.ReadAt(b, off); m < len(b) {
			return fmt.Errorf("copy %s to %s: %w", from, to, errors.Join(io.ErrUnexpectedEOF, err))
		}
		if _, err := dst.Write(b); err != nil {
			return fmt.Errorf("copy %s to %s: %w", from, to, err)
		}
		off += int64(len(b))
	}
	return dst.Sync()
}
