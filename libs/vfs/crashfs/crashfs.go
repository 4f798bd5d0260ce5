// Package crashfs is a file system in memory that knows what a power cut would leave of it. It never
// loses anything by itself: CrashImage makes a second file system as the disk might be found.
//
// It follows the contract of package vfs to the letter: what was not synced may be there or not, in
// pieces of 512 bytes and in any order; a name is safe when its directory was synced. Renames keep
// one promise of journalling file systems: the file is never lost under both names. It may be found
// under both.
package crashfs

import (
	"io"
	"io/fs"
	"path"
	"sync"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/internal/sparse"
)

// Op is a mutating operation that is about to happen.
type Op struct {
	// Index counts the mutating operations from 0.
	Index int
	// Kind is create, write, truncate, preallocate, sync, sync-dir, remove, remove-all, rename, link,
	// mkdir or seal.
	Kind string
	Name string
}

// FS implements vfs.FS. It is safe for concurrent use.
type FS struct {
	mem *vfs.MemFS

	mu     sync.Mutex
	hook   func(Op)
	index  int
	root   *inode
	inodes map[any]*inode // by the identity that MemFS gives a file
}

// inode is a file or a directory as the disk has it, and what was done to it since its last sync.
type inode struct {
	mode fs.FileMode

	durable sparse.Bytes // files
	changes []change

	entries map[string]*inode // directories
	names   []*nameChange
}

// change is a write (data), or a new size (data is nil).
type change struct {
	off  int64
	data []byte
	// grow: size is off if the file was shorter (preallocation); otherwise exactly off (truncation).
	grow bool
}

// nameChange gives a name in a directory to an inode, or takes it away (nil).
type nameChange struct {
	name string
	node *inode
	// after is the other half of a rename: the old name goes only where the new one is there.
	after *nameChange
	dir   *inode
	done  bool // synced
}

// New returns an empty file system.
func New() *FS {
	f := &FS{mem: vfs.NewMem(), inodes: map[any]*inode{}}
	f.root = f.node("/")
	return f
}

// SetHook calls hook before each mutating operation, without any lock: it may take crash images.
func (f *FS) SetHook(hook func(Op)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// Operations returns how many mutating operations there were.
func (f *FS) Operations() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.index
}

// SetUsage sets what Usage returns.
func (f *FS) SetUsage(u vfs.Usage) { f.mem.SetUsage(u) }

// mutate announces an operation and runs it under the lock.
func (f *FS) mutate(kind, name string, run func() error) error {
	f.mu.Lock()
	hook, op := f.hook, Op{Index: f.index, Kind: kind, Name: name}
	f.index++
	f.mu.Unlock()
	if hook != nil {
		hook(op)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return run()
}

// node returns the inode of a name that is there, or nil. f.mu is held, or f is new.
func (f *FS) node(name string) *inode {
	info, err := f.mem.Stat(name)
	if err != nil {
		return nil
	}
	n, ok := f.inodes[info.Sys()]
	if !ok {
		n = &inode{mode: info.Mode()}
		if info.IsDir() {
			n.entries = map[string]*inode{}
		}
		f.inodes[info.Sys()] = n
	}
	return n
}

// name records that name now stands for n; nil: for nothing.
func (f *FS) name(name string, n *inode, after *nameChange) *nameChange {
	dir := f.node(path.Dir(path.Clean("/" + name)))
	c := &nameChange{name: path.Base(name), node: n, after: after, dir: dir}
	dir.names = append(dir.names, c)
	return c
}

// Create implements vfs.FS.
func (f *FS) Create(name string, perm fs.FileMode) (file vfs.File, err error) {
	err = f.mutate("create", name, func() error {
		old := f.node(name)
		file, err = f.mem.Create(name, perm)
		if err != nil {
			return err
		}
		n := f.node(name)
		if old == nil {
			f.name(name, n, nil)
		} else {
			n.changes = append(n.changes, change{})
		}
		file = &handle{File: file, fs: f, node: n, name: name}
		return nil
	})
	return file, err
}

func (f *FS) open(name string, open func(string) (vfs.File, error)) (vfs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	file, err := open(name)
	if err != nil {
		return nil, err
	}
	return &handle{File: file, fs: f, node: f.node(name), name: name}, nil
}

// Open implements vfs.FS.
func (f *FS) Open(name string) (vfs.File, error) { return f.open(name, f.mem.Open) }

// OpenReadWrite implements vfs.FS.
func (f *FS) OpenReadWrite(name string) (vfs.File, error) { return f.open(name, f.mem.OpenReadWrite) }

// OpenDir implements vfs.FS.
func (f *FS) OpenDir(name string) (vfs.File, error) { return f.open(name, f.mem.OpenDir) }

// OpenForeign implements vfs.FS. The mode of a sealed file is durable at once.
func (f *FS) OpenForeign(name string, seal bool) (file vfs.File, err error) {
	open := func(name string) (vfs.File, error) { return f.mem.OpenForeign(name, seal) }
	if !seal {
		return f.open(name, open)
	}
	err = f.mutate("seal", name, func() error {
		file, err = open(name)
		if err != nil {
			return err
		}
		n := f.node(name)
		n.mode = 0o440
		file = &handle{File: file, fs: f, node: n, name: name}
		return nil
	})
	return file, err
}

// Remove implements vfs.FS.
func (f *FS) Remove(name string) error {
	return f.mutate("remove", name, func() error {
		if err := f.mem.Remove(name); err != nil {
			return err
		}
		f.name(name, nil, nil)
		return nil
	})
}

// RemoveAll implements vfs.FS.
func (f *FS) RemoveAll(name string) error {
	return f.mutate("remove-all", name, func() error {
		there := f.node(name) != nil
		if err := f.mem.RemoveAll(name); err != nil || !there {
			return err
		}
		f.name(name, nil, nil)
		return nil
	})
}

// Rename implements vfs.FS.
func (f *FS) Rename(oldName, newName string) error {
	return f.mutate("rename", oldName+" to "+newName, func() error {
		n, replaced := f.node(oldName), f.node(newName)
		if err := f.mem.Rename(oldName, newName); err != nil || n == replaced {
			return err
		}
		c := f.name(newName, n, nil)
		f.name(oldName, nil, c)
		return nil
	})
}

// Link implements vfs.FS.
func (f *FS) Link(oldName, newName string) error {
	return f.mutate("link", oldName+" to "+newName, func() error {
		if err := f.mem.Link(oldName, newName); err != nil {
			return err
		}
		f.name(newName, f.node(newName), nil)
		return nil
	})
}

// MkdirAll implements vfs.FS.
func (f *FS) MkdirAll(name string, perm fs.FileMode) error {
	return f.mutate("mkdir", name, func() error {
		var missing []string
		for dir := path.Clean("/" + name); f.node(dir) == nil; dir = path.Dir(dir) {
			missing = append(missing, dir)
		}
		if err := f.mem.MkdirAll(name, perm); err != nil {
			return err
		}
		for i := len(missing) - 1; i >= 0; i-- {
			f.name(missing[i], f.node(missing[i]), nil)
		}
		return nil
	})
}

// List implements vfs.FS.
func (f *FS) List(name string) ([]string, error) { return f.mem.List(name) }

// Stat implements vfs.FS.
func (f *FS) Stat(name string) (fs.FileInfo, error) { return f.mem.Stat(name) }

// Usage implements vfs.FS.
func (f *FS) Usage(name string) (vfs.Usage, error) { return f.mem.Usage(name) }

// Lock implements vfs.FS.
func (f *FS) Lock(name string) (l io.Closer, err error) {
	err = f.mutate("create", name, func() error {
		there := f.node(name) != nil
		if l, err = f.mem.Lock(name); err != nil {
			return err
		}
		if !there {
			f.name(name, f.node(name), nil)
		}
		return nil
	})
	return l, err
}
