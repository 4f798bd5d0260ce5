package vfs

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/vfs/internal/sparse"
)

// MemFS is a file system in memory: a tree of nodes under one lock. Relative and absolute names mean
// the same. It has no clock (times are zero) and loses nothing but with the process: crashfs is the
// one that crashes. The Sys of a FileInfo identifies the file whatever its names.
type MemFS struct {
	mu    sync.Mutex
	root  *memNode
	usage Usage
}

type memNode struct {
	mode    fs.FileMode
	data    sparse.Bytes
	entries map[string]*memNode // directories only
	writers int                 // handles open for writing
	locked  bool
}

// NewMem returns an empty file system.
func NewMem() *MemFS {
	return &MemFS{root: newMemDir(0o770), usage: Usage{TotalBytes: 1 << 40, FreeBytes: 1 << 40}}
}

func newMemDir(perm fs.FileMode) *memNode {
	return &memNode{mode: fs.ModeDir | perm.Perm(), entries: make(map[string]*memNode)}
}

// SetUsage sets what Usage returns; nothing is refused because of it.
func (m *MemFS) SetUsage(u Usage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.usage = u
}

func memError(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

var (
	errNotDir   = errors.New("not a directory")
	errIsDir    = errors.New("is a directory")
	errNotEmpty = errors.New("directory not empty")
)

// split returns the elements of a name.
func split(name string) []string {
	name = strings.Trim(path.Clean("/"+name), "/")
	if name == "" {
		return nil
	}
	return strings.Split(name, "/")
}

// findLocked returns the node of a name, or fs.ErrNotExist.
func (m *MemFS) findLocked(name string) (*memNode, error) {
	n := m.root
	for _, elem := range split(name) {
		if n.entries == nil {
			return nil, errNotDir
		}
		child, ok := n.entries[elem]
		if !ok {
			return nil, fs.ErrNotExist
		}
		n = child
	}
	return n, nil
}

// parentLocked returns the directory of a name and its last element.
func (m *MemFS) parentLocked(name string) (*memNode, string, error) {
	elems := split(name)
	if len(elems) == 0 {
		return nil, "", fs.ErrInvalid
	}
	dir, err := m.findLocked(strings.Join(elems[:len(elems)-1], "/"))
	if err != nil {
		return nil, "", err
	}
	if dir.entries == nil {
		return nil, "", errNotDir
	}
	return dir, elems[len(elems)-1], nil
}

// Create implements FS.
func (m *MemFS) Create(name string, perm fs.FileMode) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parentLocked(name)
	if err != nil {
		return nil, memError("create", name, err)
	}
	n, ok := dir.entries[base]
	switch {
	case !ok:
		n = &memNode{mode: perm.Perm()}
		dir.entries[base] = n
	case n.entries != nil:
		return nil, memError("create", name, errIsDir)
	case n.mode&0o200 == 0:
		return nil, memError("create", name, fs.ErrPermission)
	default:
		n.data.Resize(0)
	}
	n.writers++
	return &memFile{fs: m, node: n, name: base, write: true}, nil
}

func (m *MemFS) open(op, name string, check func(n *memNode) error) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.findLocked(name)
	if err == nil {
		err = check(n)
	}
	if err != nil {
		return nil, memError(op, name, err)
	}
	return &memFile{fs: m, node: n, name: path.Base(name)}, nil
}

// Open implements FS.
func (m *MemFS) Open(name string) (File, error) {
	return m.open("open", name, func(*memNode) error { return nil })
}

// OpenReadWrite implements FS.
func (m *MemFS) OpenReadWrite(name string) (File, error) {
	f, err := m.open("open", name, func(n *memNode) error {
		switch {
		case n.entries != nil:
			return errIsDir
		case n.mode&0o200 == 0:
			return fs.ErrPermission
		}
		n.writers++
		return nil
	})
	if err == nil {
		f.(*memFile).write = true
	}
	return f, err
}

// OpenForeign implements FS.
func (m *MemFS) OpenForeign(name string, seal bool) (File, error) {
	return m.open("open foreign", name, func(n *memNode) error {
		switch {
		case !n.mode.IsRegular():
			return fs.ErrPermission
		case !seal:
			return nil
		case n.writers > 0:
			return ErrStillOpen
		}
		n.mode = 0o440
		return nil
	})
}

// OpenDir implements FS.
func (m *MemFS) OpenDir(name string) (File, error) {
	return m.open("open directory", name, func(n *memNode) error {
		if n.entries == nil {
			return errNotDir
		}
		return nil
	})
}

// Remove implements FS.
func (m *MemFS) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parentLocked(name)
	if err != nil {
		return memError("remove", name, err)
	}
	n, ok := dir.entries[base]
	switch {
	case !ok:
		return memError("remove", name, fs.ErrNotExist)
	case len(n.entries) > 0:
		return memError("remove", name, errNotEmpty)
	}
	delete(dir.entries, base)
	return nil
}

// RemoveAll implements FS.
func (m *MemFS) RemoveAll(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parentLocked(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return memError("remove all", name, err)
	}
	delete(dir.entries, base)
	return nil
}

// Rename implements FS.
func (m *MemFS) Rename(oldName, newName string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.linkLocked("rename", oldName, newName, true)
}

// Link implements FS.
func (m *MemFS) Link(oldName, newName string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.linkLocked("link", oldName, newName, false)
}

func (m *MemFS) linkLocked(op, oldName, newName string, rename bool) error {
	from, oldBase, err := m.parentLocked(oldName)
	if err != nil {
		return memError(op, oldName, err)
	}
	n, ok := from.entries[oldBase]
	if !ok {
		return memError(op, oldName, fs.ErrNotExist)
	}
	to, newBase, err := m.parentLocked(newName)
	if err != nil {
		return memError(op, newName, err)
	}
	old, exists := to.entries[newBase]
	switch {
	case exists && !rename:
		return memError(op, newName, fs.ErrExist)
	case exists && old == n:
		return nil
	case exists && old.entries != nil && n.entries == nil:
		return memError(op, newName, errIsDir)
	case exists && old.entries == nil && n.entries != nil:
		return memError(op, newName, errNotDir)
	case exists && len(old.entries) > 0:
		return memError(op, newName, errNotEmpty)
	case !rename && n.entries != nil:
		return memError(op, oldName, fs.ErrPermission)
	case rename && n.entries != nil && strings.HasPrefix(path.Clean("/"+newName), path.Clean("/"+oldName)+"/"):
		return memError(op, newName, fs.ErrInvalid)
	}
	to.entries[newBase] = n
	if rename {
		delete(from.entries, oldBase)
	}
	return nil
}

// MkdirAll implements FS.
func (m *MemFS) MkdirAll(name string, perm fs.FileMode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.root
	for _, elem := range split(name) {
		child, ok := n.entries[elem]
		if !ok {
			child = newMemDir(perm)
			n.entries[elem] = child
		}
		if child.entries == nil {
			return memError("mkdir", name, errNotDir)
		}
		n = child
	}
	return nil
}

// List implements FS.
func (m *MemFS) List(name string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.findLocked(name)
	if err == nil && n.entries == nil {
		err = errNotDir
	}
	if err != nil {
		return nil, memError("list", name, err)
	}
	names := make([]string, 0, len(n.entries))
	for elem := range n.entries {
		names = append(names, elem)
	}
	slices.Sort(names)
	return names, nil
}

// Stat implements FS.
func (m *MemFS) Stat(name string) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.findLocked(name)
	if err != nil {
		return nil, memError("stat", name, err)
	}
	return n.infoLocked(path.Base(name)), nil
}

// Lock implements FS.
func (m *MemFS) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parentLocked(name)
	if err != nil {
		return nil, memError("lock", name, err)
	}
	n, ok := dir.entries[base]
	if !ok {
		n = &memNode{mode: 0o660}
		dir.entries[base] = n
	}
	if n.locked {
		return nil, memError("lock", name, ErrLocked)
	}
	n.locked = true
	return &memLock{fs: m, node: n}, nil
}

// Usage implements FS.
func (m *MemFS) Usage(name string) (Usage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.findLocked(name); err != nil {
		return Usage{}, memError("usage", name, err)
	}
	return m.usage, nil
}

type memLock struct {
	fs   *MemFS
	node *memNode
}

func (l *memLock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	if l.node == nil {
		return fs.ErrClosed
	}
	l.node.locked = false
	l.node = nil
	return nil
}

func (n *memNode) infoLocked(name string) fs.FileInfo {
	return memInfo{name: name, size: n.data.Size(), mode: n.mode, node: n}
}

type memInfo struct {
	name string
	size int64
	mode fs.FileMode
	node *memNode
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) Mode() fs.FileMode  { return i.mode }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.mode.IsDir() }
func (i memInfo) Sys() any           { return i.node }
