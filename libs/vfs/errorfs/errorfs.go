// Package errorfs is a file system that fails on purpose. It never fails by itself: an Injector says
// which operation does, and how.
package errorfs

import (
	"io"
	"io/fs"
	"sync"

	"github.com/pairdb/pairdb/libs/vfs"
)

// Kind is a set of operations.
type Kind uint8

const (
	// Reads are opens for reading, reads, lists and stats.
	Reads Kind = 1 << iota
	// Writes are operations that change the disk: creations, writes, new sizes, names.
	Writes
	// Syncs are syncs of files and directories.
	Syncs

	// Mutating are all operations that change what a crash leaves.
	Mutating = Writes | Syncs
	// All are all operations.
	All = Reads | Mutating
)

// Injector decides which operation fails. It is safe for concurrent use.
type Injector struct {
	mu    sync.Mutex
	kinds Kind
	at    int // index of the operation that fails; negative: none
	err   error
	// short lets a failing write write the first half.
	short bool
	// full: writes that need space fail until it is reset.
	full bool
	// every operation of these kinds fails with this, until it is reset.
	allKinds Kind
	all      error
	seen     int
	fired    bool
	what     string
}

// None returns an injector that fails nothing.
func None() *Injector { return &Injector{at: -1} }

// OnIndex returns an injector that fails the i-th operation of the given kinds, from 0, with err.
func OnIndex(i int, kinds Kind, err error) *Injector {
	return &Injector{at: i, kinds: kinds, err: err}
}

// ShortWrite is like OnIndex for writes, but the failing one writes its first half.
func ShortWrite(i int, err error) *Injector {
	return &Injector{at: i, kinds: Writes, err: err, short: true}
}

// Fired reports whether the operation failed, and which it was.
func (j *Injector) Fired() (bool, string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fired, j.what
}

// SetFull lets every operation that needs space fail with vfs.ErrNoSpace until it is called with
// false.
func (j *Injector) SetFull(full bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.full = full
}

// FailAll lets every operation of the given kinds fail with err until it is called with nil.
func (j *Injector) FailAll(kinds Kind, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.allKinds, j.all = kinds, err
}

// check counts an operation and returns its error. short says to do half of a write first.
func (j *Injector) check(kind Kind, op, name string) (err error, short bool) {
	return j.checkSpace(kind, op, name, false)
}

func (j *Injector) checkSpace(kind Kind, op, name string, needsSpace bool) (err error, short bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.full && needsSpace {
		return &fs.PathError{Op: op, Path: name, Err: vfs.ErrNoSpace}, true
	}
	if j.all != nil && j.allKinds&kind != 0 {
		return &fs.PathError{Op: op, Path: name, Err: j.all}, false
	}
	if j.kinds&kind == 0 {
		return nil, false
	}
	j.seen++
	if j.seen-1 != j.at {
		return nil, false
	}
	j.fired, j.what = true, op+" "+name
	return &fs.PathError{Op: op, Path: name, Err: j.err}, j.short
}

// Wrap returns a file system like inner whose operations fail when j says so. An operation that fails
// changes nothing, but for the first half of a short write.
func Wrap(inner vfs.FS, j *Injector) vfs.FS { return &errorFS{inner: inner, j: j} }

type errorFS struct {
	inner vfs.FS
	j     *Injector
}

func (e *errorFS) file(kind Kind, op, name string, space bool, open func() (vfs.File, error)) (vfs.File, error) {
	if err, _ := e.j.checkSpace(kind, op, name, space); err != nil {
		return nil, err
	}
	f, err := open()
	if err != nil {
		return nil, err
	}
	return &file{File: f, j: e.j, name: name}, nil
}

func (e *errorFS) Create(name string, perm fs.FileMode) (vfs.File, error) {
	return e.file(Writes, "create", name, true, func() (vfs.File, error) { return e.inner.Create(name, perm) })
}

func (e *errorFS) Open(name string) (vfs.File, error) {
	return e.file(Reads, "open", name, false, func() (vfs.File, error) { return e.inner.Open(name) })
}

func (e *errorFS) OpenReadWrite(name string) (vfs.File, error) {
	return e.file(Reads, "open", name, false, func() (vfs.File, error) { return e.inner.OpenReadWrite(name) })
}

func (e *errorFS) OpenForeign(name string, seal bool) (vfs.File, error) {
	return e.file(Reads, "open foreign", name, false, func() (vfs.File, error) { return e.inner.OpenForeign(name, seal) })
}

func (e *errorFS) OpenDir(name string) (vfs.File, error) {
	return e.file(Reads, "open directory", name, false, func() (vfs.File, error) { return e.inner.OpenDir(name) })
}

func (e *errorFS) change(op, name string, space bool, run func() error) error {
	if err, _ := e.j.checkSpace(Writes, op, name, space); err != nil {
		return err
	}
	return run()
}

func (e *errorFS) Remove(name string) error {
	return e.change("remove", name, false, func() error { return e.inner.Remove(name) })
}

func (e *errorFS) RemoveAll(name string) error {
	return e.change("remove all", name, false, func() error { return e.inner.RemoveAll(name) })
}

func (e *errorFS) Rename(oldName, newName string) error {
	return e.change("rename", oldName, false, func() error { return e.inner.Rename(oldName, newName) })
}

func (e *errorFS) Link(oldName, newName string) error {
	return e.change("link", oldName, true, func() error { return e.inner.Link(oldName, newName) })
}

func (e *errorFS) MkdirAll(name string, perm fs.FileMode) error {
	return e.change("mkdir", name, true, func() error { return e.inner.MkdirAll(name, perm) })
}

func (e *errorFS) List(name string) ([]string, error) {
	if err, _ := e.j.check(Reads, "list", name); err != nil {
		return nil, err
	}
	return e.inner.List(name)
}

func (e *errorFS) Stat(name string) (fs.FileInfo, error) {
	if err, _ := e.j.check(Reads, "stat", name); err != nil {
		return nil, err
	}
	return e.inner.Stat(name)
}

func (e *errorFS) Lock(name string) (io.Closer, error) {
	if err, _ := e.j.checkSpace(Writes, "lock", name, false); err != nil {
		return nil, err
	}
	return e.inner.Lock(name)
}

func (e *errorFS) Usage(name string) (vfs.Usage, error) {
	if err, _ := e.j.check(Reads, "usage", name); err != nil {
		return vfs.Usage{}, err
	}
	return e.inner.Usage(name)
}

// file is an open file whose operations may fail.
type file struct {
	vfs.File
	j    *Injector
	name string
}

func (f *file) Read(p []byte) (int, error) {
	if err, _ := f.j.check(Reads, "read", f.name); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if err, _ := f.j.check(Reads, "read", f.name); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *file) Write(p []byte) (int, error) {
	return f.write(p, f.File.Write)
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	return f.write(p, func(p []byte) (int, error) { return f.File.WriteAt(p, off) })
}

func (f *file) write(p []byte, run func([]byte) (int, error)) (int, error) {
	injected, short := f.j.checkSpace(Writes, "write", f.name, true)
	if injected == nil {
		return run(p)
	}
	if !short {
		return 0, injected
	}
	n, err := run(p[:len(p)/2])
	if err != nil {
		return n, err
	}
	return n, injected
}

func (f *file) Sync() error {
	if err, _ := f.j.check(Syncs, "sync", f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *file) SyncData() error {
	if err, _ := f.j.check(Syncs, "sync", f.name); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *file) Preallocate(size int64) error {
	if err, _ := f.j.checkSpace(Writes, "preallocate", f.name, true); err != nil {
		return err
	}
	return f.File.Preallocate(size)
}

func (f *file) Truncate(size int64) error {
	if err, _ := f.j.check(Writes, "truncate", f.name); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// Map refuses: reads that are no system calls could not fail.
func (f *file) Map(int64) (vfs.Mapping, error) { return nil, vfs.ErrNotMapped }
