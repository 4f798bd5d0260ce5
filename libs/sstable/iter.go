package sstable

import (
	"sync"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/iterator"
	"github.com/pairdb/pairdb/libs/sstable/block"
)

// Iter walks the point entries of a table. Keys and values alias blocks: valid until the next
// positioning call.
type Iter struct {
	*cursor
	err error // after Close
}

var _ iterator.Iterator = (*Iter)(nil)

// NewIter returns an iterator that reads through the cache. Close gives its memory back; the reader
// must stay open until then.
func (r *Reader) NewIter() *Iter {
	c := cursors.Get().(*cursor)
	c.r = r
	return &Iter{cursor: c}
}

// Valid reports whether the iterator stands on an entry.
func (it *Iter) Valid() bool { return it.cursor != nil && it.valid }

// Err returns the failure that stopped the walk.
func (it *Iter) Err() error {
	if it.cursor == nil {
		return it.err
	}
	return it.cursor.err
}

// Close releases the iterator and returns Err. It is idempotent; other methods but Valid and Err
// must not be called after it.
func (it *Iter) Close() error {
	if c := it.cursor; c != nil {
		it.err, it.cursor = c.err, nil
		c.release()
	}
	return it.err
}

// cursors keeps cursors with the buffers in which keys are put together.
var cursors = sync.Pool{New: func() any { return new(cursor) }}

// cursor is the state of an iterator: a position in the index and one in a data block.
type cursor struct {
	r    *Reader
	scan *scan // nil: through the cache

	top   block.Iter // index of the partitions; unused with one level
	leaf  block.Iter // entries point to data blocks
	data  block.Iter
	valid bool
	err   error
	// Where leaf and data are in the file, for errors and to notice that they are loaded already.
	// 0: not loaded.
	leafAt, dataAt uint64
	block          handle // of data
	values         []byte // memory of a value that is in a value block
}

func (c *cursor) release() {
	c.scan.close()
	c.top.Release()
	c.leaf.Release()
	c.data.Release()
	c.r, c.scan, c.valid, c.err = nil, nil, false, nil
	c.leafAt, c.dataAt, c.block = 0, 0, handle{}
	if cap(c.values) > maxPooledBytes {
		c.values = nil
	}
	cursors.Put(c)
}

// Key returns the key of the entry.
func (c *cursor) Key() ikey.Key { return c.data.Key() }

// Value returns the value of the entry. It may have to be read: if that fails it is nil, the
// iterator stands nowhere and Err says why.
func (c *cursor) Value() []byte {
	entry := c.data.Value()
	if !c.r.separates() {
		return entry
	}
	v, ok := decodeRef(c.block, entry)
	if !ok {
		return c.fail(c.r.malformed(c.dataAt))
	}
	if !v.apart {
		return v.inline
	}
	var b []byte
	var err error
	if c.scan != nil {
		h := v.block(c.block)
		b, err = c.r.openValue(h, c.scan.bytes(h), c.values)
	} else {
		b, err = c.r.readValue(v.block(c.block), c.values)
	}
	if err != nil {
		return c.fail(err)
	}
	c.values = b
	return b
}

// Stored returns the value as it is in the file; ok is false if it has no block of its own, or the
// iterator is no scan. It is valid until the next positioning call. If it can't be read the iterator
// stands nowhere and Err says why.
func (c *cursor) Stored() (s Stored, ok bool) {
	if c.scan == nil || !c.r.separates() {
		return s, false
	}
	v, ok := decodeRef(c.block, c.data.Value())
	if !ok {
		c.fail(c.r.malformed(c.dataAt))
	}
	if !ok || !v.apart {
		return s, false
	}
	s, err := c.r.storedValue(c.block, v, c.scan.bytes(v.block(c.block)))
	if err != nil {
		c.fail(err)
	}
	return s, err == nil
}

func (c *cursor) fail(err error) []byte {
	c.valid, c.err = false, err
	return nil
}

// First moves to the smallest entry.
func (c *cursor) First() bool {
	c.begin()
	return c.land(c.firstLeaf() && c.loadData() && c.data.First())
}

// Last moves to the largest entry.
func (c *cursor) Last() bool {
	c.begin()
	return c.land(c.lastLeaf() && c.loadData() && c.data.Last())
}

// SeekGE moves to the smallest entry that is not less than k.
func (c *cursor) SeekGE(k ikey.Key) bool {
	c.begin()
	if !c.seekLeaf(k) || !c.loadData() {
		return c.land(false)
	}
	if c.data.SeekGE(k) {
		return c.land(true)
	}
	// k lies between the last entry of the block and its separator.
	return c.land(c.dataFine() && c.nextData())
}

// SeekLT moves to the largest entry that is less than k.
func (c *cursor) SeekLT(k ikey.Key) bool {
	c.begin()
	if !c.seekLeaf(k) {
		if c.err != nil {
			return false
		}
		return c.Last()
	}
	if !c.loadData() {
		return c.land(false)
	}
	if c.data.SeekLT(k) {
		return c.land(true)
	}
	return c.land(c.dataFine() && c.prevData())
}

// Next moves one entry forward.
func (c *cursor) Next() bool {
	if !c.valid {
		return false
	}
	if c.data.Next() {
		return true
	}
	return c.land(c.dataFine() && c.nextData())
}

// Prev moves one entry backward.
func (c *cursor) Prev() bool {
	if !c.valid {
		return false
	}
	if c.data.Prev() {
		return true
	}
	return c.land(c.dataFine() && c.prevData())
}

func (c *cursor) begin() {
	c.valid, c.err = false, nil
}

// land ends a positioning call.
func (c *cursor) land(ok bool) bool {
	c.valid = ok && c.dataFine()
	if !c.valid {
		c.dataFine()
	}
	return c.valid
}

// dataFine takes over the error of the data block.
func (c *cursor) dataFine() bool {
	if c.err == nil && c.dataAt != 0 && c.data.Err() != nil {
		c.err = c.r.malformed(c.dataAt)
	}
	return c.err == nil
}

// leafFine takes over the error of an index block.
func (c *cursor) leafFine() bool {
	if c.err == nil && c.leaf.Err() != nil {
		c.err = c.r.malformed(c.leafAt)
	}
	if c.err == nil && c.r.foot.levels == 2 && c.top.Err() != nil {
		c.err = c.r.malformed(c.r.foot.index.offset)
	}
	return c.err == nil
}

// nextData and prevData move to the neighbouring data block and to its near end. A block without
// entries is malformed, so they never loop.
func (c *cursor) nextData() bool {
	return c.nextLeaf() && c.loadData() && (c.data.First() || c.emptyData())
}

func (c *cursor) prevData() bool {
	return c.prevLeaf() && c.loadData() && (c.data.Last() || c.emptyData())
}

func (c *cursor) emptyData() bool {
	if c.dataFine() {
		c.err = c.r.malformed(c.dataAt)
	}
	return false
}

// loadData loads the data block that leaf points to.
func (c *cursor) loadData() bool {
	h, err := c.r.dataHandle(c.leaf.Value())
	if err != nil {
		c.err = err
		return false
	}
	if h.offset == c.dataAt && c.scan == nil {
		return c.dataFine()
	}
	var b []byte
	if c.scan != nil {
		b, c.err = c.scan.block(c.r, h)
	} else {
		b, c.err = c.r.block(h)
	}
	if c.err != nil {
		c.dataAt = 0
		return false
	}
	c.dataAt, c.block = h.offset, h
	_ = c.data.Init(b)
	return c.dataFine()
}

// loadLeaf makes leaf the only index block, or the partition that top points to.
func (c *cursor) loadLeaf() bool {
	if c.r.foot.levels == 1 {
		if c.leafAt == 0 {
			c.leafAt = c.r.foot.index.offset
			_ = c.leaf.Init(c.r.index)
		}
		return c.leafFine()
	}
	h, err := c.r.partitionHandle(c.top.Value())
	if err != nil {
		c.err = err
		return false
	}
	if h.offset == c.leafAt {
		return c.leafFine()
	}
	var b []byte
	if c.scan != nil {
		b, c.err = c.r.readBlock(h)
	} else {
		b, c.err = c.r.block(h)
	}
	if c.err != nil {
		c.leafAt = 0
		return false
	}
	c.leafAt = h.offset
	_ = c.leaf.Init(b)
	return c.leafFine()
}

// loadTop prepares the upper index if there are two levels.
func (c *cursor) loadTop() bool {
	if c.r.foot.levels == 2 && c.leafAt == 0 {
		_ = c.top.Init(c.r.index)
	}
	return c.r.foot.levels == 1 || c.top.Err() == nil || c.leafFine()
}

func (c *cursor) firstLeaf() bool {
	if c.r.foot.levels == 2 && !(c.loadTop() && c.top.First()) {
		return c.leafFine() && false
	}
	return c.loadLeaf() && (c.leaf.First() || c.leafFine() && false)
}

func (c *cursor) lastLeaf() bool {
	if c.r.foot.levels == 2 && !(c.loadTop() && c.top.Last()) {
		return c.leafFine() && false
	}
	return c.loadLeaf() && (c.leaf.Last() || c.leafFine() && false)
}

func (c *cursor) seekLeaf(k ikey.Key) bool {
	if c.r.foot.levels == 2 && !(c.loadTop() && c.top.SeekGE(k)) {
		return c.leafFine() && false
	}
	return c.loadLeaf() && (c.leaf.SeekGE(k) || c.leafFine() && false)
}

func (c *cursor) nextLeaf() bool {
	if c.leaf.Next() {
		return true
	}
	if !c.leafFine() || c.r.foot.levels == 1 || !c.top.Next() {
		return c.leafFine() && false
	}
	return c.loadLeaf() && (c.leaf.First() || c.leafFine() && false)
}

func (c *cursor) prevLeaf() bool {
	if c.leaf.Prev() {
		return true
	}
	if !c.leafFine() || c.r.foot.levels == 1 || !c.top.Prev() {
		return c.leafFine() && false
	}
	return c.loadLeaf() && (c.leaf.Last() || c.leafFine() && false)
}
