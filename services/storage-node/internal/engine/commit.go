package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
	"github.com/pairdb/pairdb/services/storage-node/internal/memtable"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// leaderState is of whoever leads the commit queue.
type leaderState struct {
	frame  []byte
	packer logPacker
	// unsynced bytes were logged since the background was last asked to sync.
	unsynced int
	// next is the next sequence to give out.
	next ikey.Seq
	// keys are the hashes of the keys of the group's batches so far.
	keys hashSet
	// ranges are the newest range deletes and ingests, for conditions: all of them above rangesFrom.
	ranges     []rangeOp
	rangesFrom ikey.Seq
}

// rangeOp is something that changed a range of keys at once.
type rangeOp struct {
	span manifest.Span
	seq  ikey.Seq
}

// rangeSpan returns the span of a range delete.
func rangeSpan(start, end []byte) manifest.Span {
	return manifest.Span{Start: start, End: end, Exclusive: true}
}

func spanHas(s manifest.Span, key []byte) bool {
	return s.Overlaps(manifest.Span{Start: key, End: key})
}

// maxRangeOps bounds the list of ranges that conditions are checked against. Older reads conflict.
const maxRangeOps = 256

// commitGroup commits the batches of a group. It runs as the leader.
func (e *Engine) commitGroup(group []*request) {
	if e.logGroup(group) {
		e.applyGroup()
	}
}

// logGroup checks the batches of a group, gives them their sequences and writes them to the log. It
// reports whether there is something for applyGroup to do. It runs as the leader.
func (e *Engine) logGroup(group []*request) (logged bool) {
	e.lap(group, stages.Queue)
	err := e.writable()
	if err == nil && e.leader.next+ikey.Seq(len(group)*e.opts.MaxBatchOps) >= ikey.MaxSeq {
		err = errors.New("sequence numbers are used up")
	}
	live := 0
	if err == nil {
		live = e.checkConditions(group)
	}
	if err == nil && live > 0 {
		err = e.writeFrame(group)
	}
	if err != nil {
		for _, r := range group {
			if r.err == nil {
				r.err = err
			}
		}
	}
	e.lap(group, stages.Log)
	return err == nil && live > 0
}

// lap says that the submitted batches of a group have passed a stage. It runs as the leader, before any
// of them is woken; those that wait until they are durable may be gone.
func (e *Engine) lap(group []*request, s stages.Stage) {
	var now time.Time
	for _, r := range group {
		if r.durable || r.batch == nil || r.batch.trail == nil || r.err != nil && s > stages.Log {
			continue
		}
		if now.IsZero() {
			now = e.opts.Clock.Now()
		}
		r.batch.trail.Lap(s, now)
	}
}

// writeFrame logs the batches that have no error.
func (e *Engine) writeFrame(group []*request) error {
	var memBytes, logBytes, count, batches int
	for _, r := range group {
		if r.err == nil {
			memBytes += r.batch.memBytes
			logBytes += len(r.batch.ops)
			count += r.batch.count
			batches++
		}
	}
	if err := e.makeRoom(memBytes); err != nil {
		return err
	}
	if err := e.log.Reserve(groupHeaderBytes + logBytes); err != nil {
		return e.logError("reserve", err)
	}

	first := e.leader.next
	frame := append(e.leader.frame[:0], make([]byte, groupHeaderBytes)...)
	binary.LittleEndian.PutUint64(frame, uint64(first))
	binary.LittleEndian.PutUint32(frame[8:], uint32(count))
	for _, r := range group {
		if r.err == nil {
			frame = append(frame, r.batch.ops...)
		}
	}
	e.leader.frame = frame
	// Sequences of a frame that failed are not given out again: the frame may still be found after
	// a crash.
	e.leader.next += ikey.Seq(count)
	kind, payload := frameBatch, frame
	if !e.opts.NoLogCompression {
		kind, payload = e.leader.packer.pack(frame)
	}
	pos, err := e.log.Append(kind, payload)
	if err != nil {
		return e.logError("append", err)
	}

	seq := first
	for _, r := range group {
		if r.err == nil {
			seq += ikey.Seq(r.batch.count)
			r.seq = seq - 1
		}
	}
	e.noteLogged(logMark{seq: seq - 1, pos: pos})
	if e.opts.Sync != SyncGroup {
		e.noteUnsynced(len(payload))
	}
	e.stats.groups.Add(1)
	e.stats.groupSizes.add(batches)
	e.stats.logBytes.Add(uint64(len(payload)))
	return nil
}

// applyGroup applies the frame that was logged last. It runs as the leader, and uses nothing of the
// group: if a sync fails meanwhile, its members are gone.
func (e *Engine) applyGroup() {
	frame := e.leader.frame
	first := ikey.Seq(binary.LittleEndian.Uint64(frame))
	last := first + ikey.Seq(binary.LittleEndian.Uint32(frame[8:])) - 1
	e.insert(frame[groupHeaderBytes:], first)
	e.mem().maxSeq.Store(uint64(last))
	e.applied.Store(uint64(last))
	if cap(e.leader.frame) > 4*e.opts.MaxGroupBytes {
		e.leader.frame, e.leader.packer.buf = nil, nil // one huge batch must not pin its memory
	}
	e.noteApplied(last)
}

// logError turns a failure of the log before anything was applied into that of the group.
func (e *Engine) logError(what string, err error) error {
	if errors.Is(err, commitlog.ErrPoisoned) {
		return e.poison(err)
	}
	if errors.Is(err, vfs.ErrNoSpace) {
		e.noteSpace()
		return fmt.Errorf("%w: commit log: %s: %w", ErrDiskFull, what, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrLogWrite, what, err)
}

// mem returns the active memtable. Only the leader replaces it, so only the leader may read it
// without mu.
func (e *Engine) mem() *memHandle { return e.mu.mem }

// insert applies encoded changes from sequence seq on: row cache first, so that a reader who may
// see a change never finds an older row.
func (e *Engine) insert(ops []byte, seq ikey.Seq) {
	for ; len(ops) > 0; seq++ {
		c, rest, err := nextChange(ops)
		if err != nil {
			panic("engine: a batch that the log took is malformed") // Batch made it
		}
		ops = rest
		e.insertOne(c, seq)
	}
}

func (e *Engine) insertOne(c change, seq ikey.Seq) {
	e.updateRow(c, seq)
	if c.kind == ikey.KindRangeDelete {
		e.mem().AddRangeDelete(ikey.RangeDelete{Start: c.key, End: c.value, Seq: seq})
		e.noteRange(rangeSpan(bytes.Clone(c.key), bytes.Clone(c.value)), seq)
		return
	}
	for !e.mem().Add(ikey.Make(c.key, seq, c.kind), c.value) {
		// makeRoom counted too little. A frame whose changes lie in two memtables is no harm: the
		// older one's flush keeps the log from the younger one's segment on, which is the frame's.
		e.mem().maxSeq.Store(uint64(seq - 1))
		e.rotate(memtable.EntryBytes(len(c.key), len(c.value)))
	}
}

// updateRow tells the row cache of a change that is about to become readable.
func (e *Engine) updateRow(c change, seq ikey.Seq) {
	switch c.kind {
	case ikey.KindSet:
		e.rows.Update(c.key, c.value, seq, false) // what is new is in the memtable: no need to add it
	case ikey.KindRangeDelete:
		e.rows.InvalidateRange(c.key, c.value, seq)
	default:
		e.rows.Invalidate(c.key, seq)
	}
}

// noteRange remembers a range for checkConditions.
func (e *Engine) noteRange(s manifest.Span, seq ikey.Seq) {
	l := &e.leader
	if len(l.ranges) == maxRangeOps {
		l.rangesFrom = l.ranges[0].seq
		l.ranges = append(l.ranges[:0], l.ranges[1:]...)
	}
	l.ranges = append(l.ranges, rangeOp{span: s, seq: seq})
}

// checkConditions gives ErrConflict to every batch of the group whose reads are overtaken, and
// returns how many are left. A batch before another one in the group is older than it.
func (e *Engine) checkConditions(group []*request) (live int) {
	conditional := false
	for _, r := range group {
		conditional = conditional || len(r.batch.conds) > 0
	}
	if !conditional {
		return len(group)
	}
	l := &e.leader
	l.keys.reset()
	var ranges []manifest.Span // of earlier batches of the group
	for i, r := range group {
		if e.overtaken(r.batch, ranges) {
			r.err = ErrConflict
			e.stats.conflicts.Add(1)
			continue
		}
		live++
		if i == len(group)-1 {
			break
		}
		for ops := r.batch.ops; len(ops) > 0; {
			c, rest, err := nextChange(ops)
			if err != nil {
				panic("engine: malformed batch") // Batch made it
			}
			ops = rest
			if c.kind == ikey.KindRangeDelete {
				ranges = append(ranges, rangeSpan(c.key, c.value))
			} else {
				l.keys.add(memtable.Hash(c.key))
			}
		}
	}
	return live
}

// overtaken reports whether something newer than the reads of b is applied, or in front of it in
// the group.
func (e *Engine) overtaken(b *Batch, ranges []manifest.Span) bool {
	applied := ikey.Seq(e.applied.Load())
	for _, cond := range b.conds {
		c, _, err := nextChange(b.ops[cond.off:])
		if err != nil {
			return true
		}
		hash := memtable.Hash(c.key)
		if e.leader.keys.has(hash) {
			return true
		}
		for _, s := range ranges {
			if spanHas(s, c.key) {
				return true
			}
		}
		if cond.readSeq < applied && e.newerThan(c.key, hash, cond.readSeq) {
			return true
		}
	}
	return false
}

// newerThan reports whether a change of key above seq may be applied.
func (e *Engine) newerThan(key []byte, hash uint64, seq ikey.Seq) bool {
	l := &e.leader
	if seq < l.rangesFrom {
		return true // longer ago than is known: read again
	}
	for i := len(l.ranges) - 1; i >= 0 && l.ranges[i].seq > seq; i-- {
		if spanHas(l.ranges[i].span, key) {
			return true
		}
	}
	if t, _, ok := e.mem().GetHashed(hash, key, ikey.MaxSeq); ok && t.Seq() > seq {
		return true
	}
	return seq+1 < e.mem().first && e.newerInImmutables(key, hash, seq)
}

// newerInImmutables is newerThan for changes that are in no active memtable any more.
func (e *Engine) newerInImmutables(key []byte, hash uint64, seq ikey.Seq) bool {
	s, err := e.acquireFixed()
	if err != nil {
		return true
	}
	defer s.unref()
	// Loaded after the state: it rises before a state without the memtable is published.
	if uint64(seq) < e.flushed.Load() {
		return true // only tables know: read again
	}
	for _, m := range s.mems {
		if t, _, ok := m.GetHashed(hash, key, ikey.MaxSeq); ok && t.Seq() > seq {
			return true
		}
	}
	return false
}
