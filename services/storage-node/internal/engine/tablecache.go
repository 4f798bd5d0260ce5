package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
)

// tableCache keeps table files open: at most max of them, but for those in use beyond that.
//
// Every table of a live version has a slot; a slot has at most one open reader. A read that finds
// the reader takes a reference with one atomic addition and no lock. Opening is serialised by the
// slot, so that many reads of a cold table open it once. When too many are open, a hand goes round
// the open slots and closes the first that was not used since it last passed (CLOCK); users of a
// closed reader keep it until they let go.
//
// Lock order: slot.mu before tableCache.mu.
type tableCache struct {
	fs        vfs.FS
	dir       string // of the table files
	max       int
	blocks    sstable.BlockCache
	mapped    bool                        // read tables through mappings where that needs no disk
	onCorrupt func(num uint64, err error) // quarantine; called from readers, without locks

	noHashIndex bool

	mu     sync.Mutex
	slots  map[uint64]*tableSlot
	ring   []*tableSlot // open ones
	hand   int
	closed bool

	files atomic.Int64 // readers that are not closed: 0 after close and the last release
	opens atomic.Uint64
}

// tableSlot is the place of one table in the cache.
type tableSlot struct {
	cache  *tableCache
	num    uint64
	reader atomic.Pointer[openTable]
	used   atomic.Bool // since the hand last passed

	mu   sync.Mutex // held while opening
	gone bool       // guarded by mu: evicted for good

	ringAt int // guarded by cache.mu; -1 when not in the ring
}

// openTable is a reader with a count of its users; the cache is one while the slot points to it.
type openTable struct {
	*sstable.Reader
	ranges *rangeIndex // nil without range deletes
	refs   atomic.Int64
	slot   *tableSlot
}

func newTableCache(fs vfs.FS, dir string, maxOpen int, blocks sstable.BlockCache, onCorrupt func(uint64, error)) *tableCache {
	return &tableCache{fs: fs, dir: dir, max: max(maxOpen, 1), blocks: blocks, onCorrupt: onCorrupt,
		slots: make(map[uint64]*tableSlot)}
}

// slot returns the slot of a table; it opens nothing.
func (c *tableCache) slot(num uint64) *tableSlot {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.slots[num]
	if s == nil {
		s = &tableSlot{cache: c, num: num, ringAt: -1}
		c.slots[num] = s
	}
	return s
}

// acquire returns the open reader of the table; the caller releases it.
func (s *tableSlot) acquire() (*openTable, error) {
	if t := s.reader.Load(); t != nil && t.tryRef() {
		if !s.used.Load() {
			s.used.Store(true)
		}
		return t, nil
	}
	return s.open()
}

// rulesOut reports whether the filter of the table denies the key with this filter.Hash; false if the
// table is not open, or has range deletes. It takes no reference: a filter is memory that stays as long
// as somebody looks at it, also when the reader is closed meanwhile.
func (s *tableSlot) rulesOut(hash uint64) bool {
	t := s.reader.Load()
	if t == nil || t.ranges != nil || t.MayContain(hash) {
		return false
	}
	if !s.used.Load() {
		s.used.Store(true)
	}
	return true
}

func (t *openTable) tryRef() bool {
	if t.refs.Add(1) <= 0 {
		t.refs.Add(-1)
		return false
	}
	return true
}

func (t *openTable) release() {
	if t.refs.Add(-1) == 0 && t.refs.CompareAndSwap(0, dead) {
		_ = t.Close() // opened for reading: nothing can be lost
		t.slot.cache.files.Add(-1)
	}
}

// open opens the table, unless another goroutine did so meanwhile, and reports it when it is damaged.
func (s *tableSlot) open() (*openTable, error) {
	t, err := s.openOnce()
	if isDamage(err) {
		s.cache.onCorrupt(s.num, err) // without slot.mu: quarantining publishes a version
	}
	return t, err
}

func (s *tableSlot) openOnce() (*openTable, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.reader.Load(); t != nil && t.tryRef() {
		return t, nil
	}
	if s.gone {
		return nil, fmt.Errorf("open table %s: %w", compact.TableName(s.num), ErrClosed)
	}
	c := s.cache
	r, err := c.openReader(s.num)
	if err != nil {
		return nil, err
	}
	t := &openTable{Reader: r, slot: s}
	if dels := r.RangeDeletes(); len(dels) > 0 {
		t.ranges = newRangeIndex(dels)
	}
	t.refs.Store(2) // the slot and the caller
	c.files.Add(1)
	c.opens.Add(1)
	s.reader.Store(t)
	s.used.Store(false) // only a second use makes it worth more than the others
	c.admit(s)
	return t, nil
}

// warm opens a table before anybody can read it, so that no read has to wait for its metadata and its
// pages. A table that can't be opened is the business of whoever reads it.
func (c *tableCache) warm(num uint64) {
	if t, err := c.slot(num).openOnce(); err == nil {
		t.release()
	}
}

// isDamage reports whether err says that a file of ours is not what was written. A file of a newer
// format is not damaged: the program is old.
func isDamage(err error) bool {
	return errors.Is(err, sstable.ErrCorrupt) && !errors.Is(err, sstable.ErrNewerFormat)
}

// openReader opens a table file. That a referenced table is missing is damage; a failure to read it
// is not.
func (c *tableCache) openReader(num uint64) (*sstable.Reader, error) {
	name := compact.TableName(num)
	f, err := c.fs.Open(path.Join(c.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &sstable.CorruptionError{File: name, What: "the manifest names this table, but there is no such file"}
	}
	if err != nil {
		return nil, fmt.Errorf("open table %s: %w", name, err)
	}
	r, err := sstable.Open(f, sstable.ReaderOptions{Cache: c.blocks, FileNum: num, Name: name, NoHashIndex: c.noHashIndex})
	if err != nil {
		return nil, fmt.Errorf("open table %s: %w", name, err)
	}
	if c.mapped {
		_, _ = r.Map() // without it reads are system calls: slower, as right
	}
	return r, nil
}

// remap looks again which of the open tables are in the page cache, so that reads of them need no
// system call, and reads of the others no page fault.
func (c *tableCache) remap() {
	if !c.mapped {
		return
	}
	c.mu.Lock()
	open := slices.Clone(c.ring)
	c.mu.Unlock()
	for _, s := range open {
		s.mu.Lock()
		if t := s.reader.Load(); t != nil && t.tryRef() {
			_, _ = t.Map()
			t.release()
		}
		s.mu.Unlock()
	}
}

// admit puts an opened slot on the ring and closes another one if there are too many.
func (c *tableCache) admit(s *tableSlot) {
	c.mu.Lock()
	if s.ringAt < 0 {
		s.ringAt = len(c.ring)
		c.ring = append(c.ring, s)
	}
	var out *openTable
	if c.closed {
		out = c.dropLocked(s)
	} else if len(c.ring) > c.max {
		out = c.evictOneLocked(s)
	}
	c.mu.Unlock()
	if out != nil {
		out.release()
	}
}

// evictOneLocked closes the first slot that was not used since the hand last passed, keep
// excepted. Two rounds always suffice; slots that become used again meanwhile are taken then.
func (c *tableCache) evictOneLocked(keep *tableSlot) *openTable {
	for range 2*len(c.ring) + 1 {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		s := c.ring[c.hand]
		if s == keep || s.used.Swap(false) {
			c.hand++
			continue
		}
		return c.dropLocked(s)
	}
	return nil
}

// dropLocked takes a slot off the ring and returns its reader, which the caller releases.
func (c *tableCache) dropLocked(s *tableSlot) *openTable {
	if s.ringAt >= 0 {
		last := c.ring[len(c.ring)-1]
		c.ring[s.ringAt], last.ringAt = last, s.ringAt
		c.ring = c.ring[:len(c.ring)-1]
		s.ringAt = -1
	}
	return s.reader.Swap(nil)
}

// evict forgets a table that no version refers to: its file may be deleted then.
func (c *tableCache) evict(num uint64) {
	c.mu.Lock()
	s := c.slots[num]
	delete(c.slots, num)
	c.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	s.gone = true
	c.mu.Lock()
	t := c.dropLocked(s)
	c.mu.Unlock()
	s.mu.Unlock()
	if t != nil {
		t.release()
	}
}

// close closes all readers that are not in use; those that are close when they are released.
func (c *tableCache) close() {
	c.mu.Lock()
	c.closed = true
	var out []*openTable
	for len(c.ring) > 0 {
		if t := c.dropLocked(c.ring[0]); t != nil {
			out = append(out, t)
		}
	}
	c.mu.Unlock()
	for _, t := range out {
		t.release()
	}
}
