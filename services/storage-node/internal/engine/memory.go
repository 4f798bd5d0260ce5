package engine

import "github.com/pairdb/pairdb/services/storage-node/internal/memtable"

// MemoryState is what the owner knows of the memory of the process.
type MemoryState uint8

const (
	// MemoryOK: enough.
	MemoryOK MemoryState = iota
	// MemoryHigh: memtables are flushed early, and no memory is kept for the next one.
	MemoryHigh
	// MemoryCritical: writes are refused besides, until there is memory again.
	MemoryCritical
)

// earlyMemtables is the part of Options.MemtableBytes that memtables get while memory is high: small
// enough to give most of it back (two that are flushed and the active one are then less than one
// usually is), large enough that level 0 does not fill with tiny tables.
const earlyMemtables = 4

// SetMemory tells the engine how memory is. It returns at once.
func (e *Engine) SetMemory(s MemoryState) {
	if MemoryState(e.memory.Swap(uint32(s))) == s {
		return
	}
	spares := 0
	if s == MemoryOK && !e.opts.NoSpareMemtable {
		spares = 1
	}
	e.arenas.keep(spares)
	e.updatePressure()
	if s > MemoryOK {
		notify(e.wake.shrink)
	}
}

// ResizeCaches gives row and block cache a share, 0 to 1, of the sizes in Options. What no longer fits
// goes at once.
func (e *Engine) ResizeCaches(share float64) {
	share = min(max(share, 0), 1)
	e.rows.SetCapacity(int64(share * float64(e.opts.RowCacheBytes)))
	e.blocks.SetCapacity(int64(share * float64(e.opts.BlockCacheBytes)))
}

// memtableBytes is the size of memtables now.
func (e *Engine) memtableBytes() int {
	if MemoryState(e.memory.Load()) > MemoryOK {
		return max(e.opts.MemtableBytes/earlyMemtables, minMemtableBytes)
	}
	return e.opts.MemtableBytes
}

// flushEarly hands the active memtable to the flush although it is not full. A flush that is behind
// already would only get a longer queue.
func (e *Engine) flushEarly() {
	e.mu.Lock()
	behind := len(e.mu.imm) >= e.opts.MaxImmutables
	e.mu.Unlock()
	if !behind {
		_ = e.rotateNonEmpty() // closed or poisoned: said elsewhere
	}
}

// recycleMemtable takes a memtable that nobody holds any more.
func (e *Engine) recycleMemtable(t *memtable.Table) { e.arenas.give(t, e.memtableBytes()) }
