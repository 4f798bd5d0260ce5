package engine

import (
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/vfs"
)

// countFS counts the files that are open, for tests that want none left.
type countFS struct {
	vfs.FS
	open atomic.Int64
}

type countedFile struct {
	vfs.File
	once sync.Once
	fs   *countFS
}

func (f *countedFile) Close() error {
	f.once.Do(func() { f.fs.open.Add(-1) })
	return f.File.Close()
}

func (c *countFS) count(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	c.open.Add(1)
	return &countedFile{File: f, fs: c}, nil
}

func (c *countFS) Create(name string, perm fs.FileMode) (vfs.File, error) {
	return c.count(c.FS.Create(name, perm))
}

func (c *countFS) Open(name string) (vfs.File, error)    { return c.count(c.FS.Open(name)) }
func (c *countFS) OpenDir(name string) (vfs.File, error) { return c.count(c.FS.OpenDir(name)) }

func (c *countFS) OpenReadWrite(name string) (vfs.File, error) {
	return c.count(c.FS.OpenReadWrite(name))
}

func (c *countFS) OpenForeign(name string, seal bool) (vfs.File, error) {
	return c.count(c.FS.OpenForeign(name, seal))
}
