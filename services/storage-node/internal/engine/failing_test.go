package engine

import (
	"errors"
	"io/fs"
	"strings"
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/vfs"
)

// failingCreate fails every creation of a file whose name contains match, while on.
type failingCreate struct {
	vfs.FS
	match string
	on    atomic.Bool
}

var errInjected = errors.New("injected")

func (f *failingCreate) Create(name string, perm fs.FileMode) (vfs.File, error) {
	if f.on.Load() && strings.Contains(name, f.match) {
		return nil, errInjected
	}
	return f.FS.Create(name, perm)
}

// tornWrites writes half of the next WriteAt of a file whose name contains match, and fails, when
// armed.
type tornWrites struct {
	vfs.FS
	match string
	armed atomic.Bool
}

func (f *tornWrites) Create(name string, perm fs.FileMode) (vfs.File, error) {
	file, err := f.FS.Create(name, perm)
	return f.wrap(name, file, err)
}

func (f *tornWrites) OpenReadWrite(name string) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name)
	return f.wrap(name, file, err)
}

func (f *tornWrites) wrap(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil || !strings.Contains(name, f.match) {
		return file, err
	}
	return &tornFile{File: file, fs: f}, nil
}

type tornFile struct {
	vfs.File
	fs *tornWrites
}

func (f *tornFile) WriteAt(p []byte, off int64) (int, error) {
	if !f.fs.armed.CompareAndSwap(true, false) {
		return f.File.WriteAt(p, off)
	}
	n, err := f.File.WriteAt(p[:len(p)/2], off)
	return n, errors.Join(errInjected, err)
}
