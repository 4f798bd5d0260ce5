package crashfs

import (
	"bytes"

	"github.com/pairdb/pairdb/libs/vfs"
)

// handle is an open file that records what is done to it.
type handle struct {
	vfs.File
	fs   *FS
	node *inode
	name string
	pos  int64 // guarded by fs.mu
}

func (h *handle) Read(p []byte) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	n, err := h.File.Read(p)
	h.pos += int64(n)
	return n, err
}

func (h *handle) Write(p []byte) (n int, err error) {
	err = h.fs.mutate("write", h.name, func() error {
		if n, err = h.File.Write(p); err == nil && n > 0 {
			h.node.changes = append(h.node.changes, change{off: h.pos, data: bytes.Clone(p)})
			h.pos += int64(n)
		}
		return err
	})
	return n, err
}

func (h *handle) WriteAt(p []byte, off int64) (n int, err error) {
	err = h.fs.mutate("write", h.name, func() error {
		if n, err = h.File.WriteAt(p, off); err == nil && n > 0 {
			h.node.changes = append(h.node.changes, change{off: off, data: bytes.Clone(p)})
		}
		return err
	})
	return n, err
}

func (h *handle) Preallocate(size int64) error {
	return h.resize("preallocate", size, true, h.File.Preallocate)
}

func (h *handle) Truncate(size int64) error {
	return h.resize("truncate", size, false, h.File.Truncate)
}

func (h *handle) resize(kind string, size int64, grow bool, run func(int64) error) error {
	return h.fs.mutate(kind, h.name, func() error {
		if err := run(size); err != nil {
			return err
		}
		h.node.changes = append(h.node.changes, change{off: size, grow: grow})
		return nil
	})
}

func (h *handle) Sync() error {
	kind := "sync"
	if h.node.entries != nil {
		kind = "sync-dir"
	}
	return h.fs.mutate(kind, h.name, func() error {
		if err := h.File.Sync(); err != nil {
			return err
		}
		for _, c := range h.node.changes {
			h.node.apply(c)
		}
		h.node.changes = nil
		for _, c := range h.node.names {
			c.apply()
		}
		h.node.names = nil
		return nil
	})
}

func (h *handle) SyncData() error { return h.Sync() }

// apply makes a change durable.
func (n *inode) apply(c change) {
	switch {
	case c.data != nil:
		n.durable.WriteAt(c.data, c.off)
	case !c.grow || n.durable.Size() < c.off:
		n.durable.Resize(c.off)
	}
}

// apply makes a change of names durable. With the old name of a rename goes the new one: both are in
// one transaction of the journal.
func (c *nameChange) apply() {
	if c.done {
		return
	}
	c.done = true
	if c.after != nil {
		c.after.apply()
	}
	if c.node == nil {
		delete(c.dir.entries, c.name)
		return
	}
	c.dir.entries[c.name] = c.node
}
