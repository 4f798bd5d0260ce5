package engine

import (
	"io"
	"sync"
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/cache"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
	"github.com/pairdb/pairdb/services/storage-node/internal/memtable"
	"github.com/pairdb/pairdb/services/storage-node/internal/picker"
)

// Engine is an open data directory. All methods may be called from several goroutines. The locks
// and their order are in the package comment.
type Engine struct {
	// reads is the read side: current read state, applied and visible sequence, snapshots, table
	// and row caches.
	reads

	// Immutable after Open.
	dir      string
	opts     Options
	fs       vfs.FS
	lock     io.Closer
	log      *commitlog.Log
	manifest *manifest.Set
	blocks   *cache.Blocks // nil: no block cache
	board    *jobs.Board

	eventMu sync.Mutex // one event at a time

	// commit is the queue of batches; leader fields are of whoever leads it.
	commit commitQueue
	leader leaderState
	// durable is who syncs the log and how far it is synced.
	durable durability

	ingestMu sync.Mutex // one ingest at a time
	editMu   sync.Mutex // one manifest edit at a time

	// Guarded by mu.
	mu struct {
		sync.Mutex
		mem          *memHandle   // the active memtable; only the leader replaces it
		imm          []*memHandle // immutable ones, oldest first
		changed      sync.Cond    // mem, imm, version or state changed
		flushErr     error        // of the last flush; nil when it worked
		flushing     bool
		flushNow     bool        // ignore the back-off of a failed flush
		busy         picker.Busy // tables and spans of running plans
		jobs         int         // running plans
		finished     uint64      // plans that ended
		cursors      [manifest.NumLevels][]byte
		closing      bool
		quarantining map[uint64]bool // marks that are being written
		cleanup      *cleanup        // that is under way; nil: none
		// cuts are those that the last pick went by, cutsVersion counts their changes, and kept is what
		// picker.Facts says.
		cuts        []compact.HashCut
		cutsInForce bool
		cutsVersion uint64
		kept        map[uint64]picker.Kept
	}

	cleaning chan struct{} // held by the one cleanup

	arenas arenaPool
	space  spaceState
	tails  tailState

	// Atomic.
	closed   atomic.Bool // no more writes
	poisoned atomic.Pointer[error]
	pressure judgement
	memory   atomic.Uint32 // a MemoryState
	flushed  atomic.Uint64 // newest sequence of flushed memtables: all up to it is in tables
	stats    counters

	stop       chan struct{} // closed when background work must end
	wake       wakeups
	background sync.WaitGroup
	closeOnce  sync.Once
	closeErr   error
}

// memHandle is a memtable with what its flush must know.
type memHandle struct {
	*memtable.Table
	// first is the next sequence when the memtable became the active one: every change from it on
	// is in this memtable or a younger one.
	first ikey.Seq
	// segment is the first log segment that may hold a write of the memtable: while it is in
	// memory only, that segment and all after it stay.
	segment uint64
	// nextAsked says that a memtable to follow was asked for. Of the leader.
	nextAsked bool
	// maxSeq is the newest sequence in it; it is final once the memtable is immutable.
	maxSeq atomic.Uint64
}

// Board returns the job board, for the server that workers lease from.
func (e *Engine) Board() *jobs.Board { return e.board }

// installReadState publishes memtables and the current version to readers. e.mu is held.
func (e *Engine) installReadStateLocked() {
	mems := make([]*memtable.Table, 0, 1+len(e.mu.imm))
	mems = append(mems, e.mu.mem.Table)
	for i := len(e.mu.imm) - 1; i >= 0; i-- {
		mems = append(mems, e.mu.imm[i].Table)
	}
	e.publish(mems, e.manifest.Current())
}

// poison stops all writing: a sync failed, so nothing is known about unsynced bytes. The first
// reason stays.
func (e *Engine) poison(err error) error {
	if e.poisoned.CompareAndSwap(nil, &err) {
		e.emit(Event{Kind: EventPoisoned, Err: err})
		e.mu.Lock()
		e.mu.changed.Broadcast()
		e.mu.Unlock()
	}
	return e.poisonErr()
}

// poisonErr returns the error of every write after poison, or nil.
func (e *Engine) poisonErr() error {
	if p := e.poisoned.Load(); p != nil {
		return &poisonError{cause: *p}
	}
	return nil
}

type poisonError struct{ cause error }

func (p *poisonError) Error() string        { return ErrPoisoned.Error() + ": " + p.cause.Error() }
func (p *poisonError) Unwrap() error        { return p.cause }
func (p *poisonError) Is(target error) bool { return target == ErrPoisoned }

// AppliedSeq returns the newest sequence that was given to a write; VisibleSeq the newest one that
// readers see.
func (e *Engine) AppliedSeq() ikey.Seq { return ikey.Seq(e.applied.Load()) }

// VisibleSeq returns the newest sequence that readers see.
func (e *Engine) VisibleSeq() ikey.Seq { return ikey.Seq(e.visible.Load()) }
