package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// memFile is a handle on a node of a MemFS; its fields but fs are guarded by fs.mu.
type memFile struct {
	fs     *MemFS
	node   *memNode
	name   string
	pos    int64
	write  bool
	closed bool
}

// begin locks the file system and refuses what the handle must not do.
func (f *memFile) begin(op string, write bool) error {
	f.fs.mu.Lock()
	var err error
	switch {
	case f.closed:
		err = fs.ErrClosed
	case write && !f.write:
		err = fs.ErrPermission
	default:
		return nil
	}
	f.fs.mu.Unlock()
	return memError(op, f.name, err)
}

func (f *memFile) Read(p []byte) (int, error) {
	if err := f.begin("read", false); err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.node.data.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.begin("read", false); err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	return f.node.data.ReadAt(p, off)
}

func (f *memFile) Write(p []byte) (int, error) {
	if err := f.begin("write", true); err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	f.node.data.WriteAt(p, f.pos)
	f.pos += int64(len(p))
	return len(p), nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.begin("write", true); err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	if off < 0 {
		return 0, memError("write", f.name, fs.ErrInvalid)
	}
	f.node.data.WriteAt(p, off)
	return len(p), nil
}

func (f *memFile) Sync() error {
	if err := f.begin("sync", false); err != nil {
		return err
	}
	f.fs.mu.Unlock()
	return nil
}

func (f *memFile) SyncData() error { return f.Sync() }

func (f *memFile) Preallocate(size int64) error {
	if err := f.begin("preallocate", true); err != nil {
		return err
	}
	defer f.fs.mu.Unlock()
	if size > f.node.data.Size() {
		f.node.data.Resize(size)
	}
	return nil
}

func (f *memFile) Truncate(size int64) error {
	if err := f.begin("truncate", true); err != nil {
		return err
	}
	defer f.fs.mu.Unlock()
	if size < 0 {
		return memError("truncate", f.name, fs.ErrInvalid)
	}
	f.node.data.Resize(size)
	return nil
}

func (f *memFile) Stat() (fs.FileInfo, error) {
	if err := f.begin("stat", false); err != nil {
		return nil, err
	}
	defer f.fs.mu.Unlock()
	return f.node.infoLocked(f.name), nil
}

func (f *memFile) DontNeed(int64, int64) {}

func (f *memFile) Map(size int64) (Mapping, error) {
	if err := f.begin("map", false); err != nil {
		return nil, err
	}
	defer f.fs.mu.Unlock()
	if size <= 0 || size > f.node.data.Size() {
		return nil, memError("map", f.name, ErrNotMapped)
	}
	m := make(memMapping, size) // a copy: files that are mapped do not change
	if _, err := f.node.data.ReadAt(m, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return m, nil
}

type memMapping []byte

func (m memMapping) Bytes() []byte                 { return m }
func (m memMapping) ResidentBytes() (int64, error) { return int64(len(m)), nil }
func (m memMapping) Populate() error               { return nil }
func (m memMapping) Close() error                  { return nil }

func (f *memFile) Close() error {
	if err := f.begin("close", false); err != nil {
		return err
	}
	defer f.fs.mu.Unlock()
	f.closed = true
	if f.write {
		f.node.writers--
	}
	return nil
}
