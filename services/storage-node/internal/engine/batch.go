package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/memtable"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// MaxKeyBytes bounds an engine key: tenant, separator and user key.
const MaxKeyBytes = 16 << 10

// Batch is a list of changes that become durable and visible together. It is for one goroutine, and
// may be used again after Reset once Pending.Wait returned.
//
// Its content is what the commit log stores, one change after the other:
//
//	kind (1 byte) ‖ key length (uvarint) ‖ key ‖ value length (uvarint) ‖ value
//
// where the value of a range delete is the end of its range, and a Delete has neither length nor
// value.
type Batch struct {
	ops   []byte
	count int
	conds []condition
	// memBytes is the most that the changes take of a memtable.
	memBytes int
	ranges   int // range deletes
	puts     int // sets and merges
	urgent   bool
	removal  bool
	trail    *stages.Trail // nil: nobody looks
	err      error
}

// condition says that the Set that begins at off must not follow anything newer than readSeq.
type condition struct {
	off     int
	readSeq ikey.Seq
}

// Set makes value the complete state of key, whatever is there. The value is an encoded record.
func (b *Batch) Set(key, value []byte) { b.add(ikey.KindSet, key, value) }

// SetIfUnchanged is Set on condition that no write to the key, no overlapping ingest and no range
// delete is newer than readSeq, which GetLatest returned. Otherwise the batch is ErrConflict.
func (b *Batch) SetIfUnchanged(key, value []byte, readSeq ikey.Seq) {
	b.conds = append(b.conds, condition{off: len(b.ops), readSeq: readSeq})
	b.add(ikey.KindSet, key, value)
}

// Merge adds a fragment that is joined with what is older.
func (b *Batch) Merge(key, value []byte) { b.add(ikey.KindMerge, key, value) }

// Delete removes the key physically.
func (b *Batch) Delete(key []byte) { b.add(ikey.KindDelete, key, nil) }

// DeleteRange removes every key in [start, end) physically.
func (b *Batch) DeleteRange(start, end []byte) {
	if bytes.Compare(start, end) >= 0 || len(end) > MaxKeyBytes {
		b.fail(fmt.Errorf("%w: range delete from a key of %d bytes to one of %d", ErrInvalidKey, len(start), len(end)))
		return
	}
	b.ranges++
	b.add(ikey.KindRangeDelete, start, end)
}

// Urgent lets the batch pass although writes are delayed or refused, until Reset. It is for small
// batches of the node itself that lead to room.
func (b *Batch) Urgent() { b.urgent = true }

// Removal says, until Reset, that the batch stores tombstones only: a full disk takes it for as long as
// there is a part of the reserve for deletes.
func (b *Batch) Removal() { b.removal = true }

// Trail has the commit of the batch say in t which stages it passed, until Reset. It is for batches that
// are submitted: a batch whose Apply waits until it is durable may be gone before it is applied.
func (b *Batch) Trail(t *stages.Trail) { b.trail = t }

func (b *Batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// Len returns the number of changes, Bytes their size in the commit log.
func (b *Batch) Len() int { return b.count }

// Bytes returns the size of the changes in the commit log.
func (b *Batch) Bytes() int { return len(b.ops) }

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() {
	*b = Batch{ops: b.ops[:0], conds: b.conds[:0]}
}

func (b *Batch) add(kind ikey.Kind, key, value []byte) {
	if len(key) == 0 || len(key) > MaxKeyBytes {
		b.fail(fmt.Errorf("%w: %d bytes, 1 to %d expected", ErrInvalidKey, len(key), MaxKeyBytes))
		return
	}
	b.ops = append(b.ops, byte(kind))
	b.ops = binary.AppendUvarint(b.ops, uint64(len(key)))
	b.ops = append(b.ops, key...)
	if kind != ikey.KindDelete {
		b.ops = binary.AppendUvarint(b.ops, uint64(len(value)))
		b.ops = append(b.ops, value...)
	}
	if kind == ikey.KindSet || kind == ikey.KindMerge {
		b.puts++
	}
	b.count++
	b.memBytes += memtable.EntryBytes(len(key), len(value))
}

// change is one decoded change; key and value alias the encoded form.
type change struct {
	kind       ikey.Kind
	key, value []byte
}

// nextChange splits the first change off.
func nextChange(ops []byte) (c change, rest []byte, err error) {
	if len(ops) == 0 {
		return c, nil, errOps
	}
	c.kind, rest = ikey.Kind(ops[0]), ops[1:]
	if c.kind > ikey.KindRangeDelete {
		return c, nil, fmt.Errorf("%w: kind %d", errOps, ops[0])
	}
	if c.key, rest, err = cutBytes(rest); err != nil {
		return c, nil, err
	}
	if len(c.key) == 0 || len(c.key) > MaxKeyBytes {
		return c, nil, fmt.Errorf("%w: key of %d bytes", errOps, len(c.key))
	}
	if c.kind != ikey.KindDelete {
		c.value, rest, err = cutBytes(rest)
	}
	return c, rest, err
}

var errOps = fmt.Errorf("%w: malformed batch", ErrCorrupt)

func cutBytes(b []byte) (head, rest []byte, err error) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, errOps
	}
	end := w + int(n)
	return b[w:end:end], b[end:], nil
}
