package replica

import (
	"bytes"
	"context"
	"fmt"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// chunkBytes: messages of 48 KiB stay below the 64 KiB up to which gRPC streams are fast.
	chunkBytes = 48 << 10
	// recordOverhead is the most that a record takes on the wire beside key and value.
	recordOverhead = 16
	// idleRecords is how many records are passed over before a chunk tells the cursor all the same.
	idleRecords = 100_000
	// maxCursorBytes is an engine key.
	maxCursorBytes = store.MaxTenantBytes + 1 + store.MaxKeyBytes
)

// ExportRequest asks for the records of a selection.
type ExportRequest struct {
	What Selection
	// Cursor continues after that chunk of an earlier export of the selection, in a new snapshot.
	Cursor []byte
}

// Chunk is a part of an export. What it holds is valid until the callback returns.
type Chunk struct {
	// Records in the order of engine keys; may be empty: then only the cursor has moved, or there is none.
	Records []Record
	Cursor  []byte
	// Sequence is that of the snapshot: every change up to it is in it, none after it.
	Sequence uint64
	// Remaining is an estimate of what is left, in bytes.
	Remaining int64
	// Finished: nothing follows.
	Finished bool
}

// Export calls send with the records of a selection, all from one durable snapshot, at least once. send
// blocks for as long as the receiver is slow; its error ends the export and is returned.
func (r *Replica) Export(ctx context.Context, q ExportRequest, send func(Chunk) error) (err error) {
	what, err := q.What.check()
	if err != nil {
		return err
	}
	spans := what.spans
	if len(q.Cursor) > 0 {
		if len(q.Cursor) > maxCursorBytes {
			return refuse(store.ReasonCursor, "cursor has %d bytes, at most %d are one", len(q.Cursor), maxCursorBytes)
		}
		spans = what.after(q.Cursor)
	}
	snap := r.e.NewSnapshot()
	defer func() {
		if cerr := snap.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("export: %w", cerr)
		}
	}()
	if err := r.e.WaitDurable(snap.Seq()); err != nil { // in modes in which readers see what a crash may take
		return err
	}
	x := &export{r: r, what: what, send: send}
	x.chunk.Sequence, x.chunk.Cursor = uint64(snap.Seq()), bytes.Clone(q.Cursor)
	if err := x.estimate(); err != nil {
		return err
	}
	if err := walk(ctx, snap, spans, x.take, func(int) error { return x.estimate() }); err != nil {
		return err
	}
	x.chunk.Finished, x.chunk.Remaining = true, 0
	return x.flush()
}

// export is one on its way.
type export struct {
	r       *Replica
	what    *selected
	send    func(Chunk) error
	tokens  tokens
	packer  packer
	chunk   Chunk
	scanned int // records since the last chunk
	at      int64
}

// estimate looks at what tables hold behind the cursor.
func (x *export) estimate() error {
	spans := x.what.spans
	if len(x.chunk.Cursor) > 0 {
		spans = x.what.after(x.chunk.Cursor)
	}
	if len(spans) > maxEstimated {
		spans = spans[:0] // single keys are not worth a look each
	}
	sum := 0.0
	for _, s := range spans {
		end := s.End
		if end == nil {
			end = lastKey
		}
		n, err := x.r.e.ApproximateBytes(s.Start, end)
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		sum += float64(n)
	}
	x.at = int64(sum * x.what.share)
	return nil
}

const maxEstimated = 16

// lastKey is above all engine keys: tenants are UTF-8.
var lastKey = []byte{0xff}

// take looks at one record, and sends what is together when the record does not fit beside it.
func (x *export) take(key, value []byte) error {
	wanted := x.what.hashes.all
	if !wanted {
		token, err := x.tokens.of(key)
		if err != nil {
			return corrupted(key, err)
		}
		wanted = x.what.hashes.has(token)
	}
	if wanted {
		if _, err := causal.Summarize(value, 0); err != nil {
			return corrupted(key, err)
		}
		err := parts(key, value, func(part []byte) error {
			if !x.packer.fits(key, part) {
				if err := x.flush(); err != nil {
					return err
				}
			}
			x.packer.add(key, part)
			return nil
		})
		if err != nil {
			return err
		}
	}
	x.chunk.Cursor = append(x.chunk.Cursor[:0], key...)
	if x.scanned++; x.scanned >= idleRecords {
		return x.flush()
	}
	return nil
}

func (x *export) flush() error {
	x.chunk.Records = x.packer.records()
	size := x.packer.size
	if !x.chunk.Finished {
		x.at = max(x.at-int64(size), 0)
		x.chunk.Remaining = x.at
	}
	if err := x.send(x.chunk); err != nil {
		return err
	}
	x.r.counts.exportedRecords.Add(uint64(len(x.chunk.Records)))
	x.r.counts.exportedBytes.Add(uint64(size))
	x.packer.reset()
	x.scanned = 0
	return nil
}

// maxPartBytes is what a record may have to travel whole. A node takes messages of 20 MiB, one sibling has
// 10 MiB and its clock at most.
const maxPartBytes = 8 << 20

// parts calls add with a record, or with several that are it when they are joined, because it is too large
// for one message: siblings that stand side by side do so in whatever order they come together.
func parts(key, value []byte, add func(part []byte) error) error {
	if len(value) <= maxPartBytes {
		return add(value)
	}
	rec, err := causal.Decode(value)
	if err != nil {
		return corrupted(key, err)
	}
	var part causal.Record
	size := 0
	for _, s := range rec.Siblings {
		if n := len(s.Value); len(part.Siblings) > 0 && size+n > maxPartBytes {
			if err := add(part.Encode(nil)); err != nil {
				return err
			}
			part, size = causal.Record{}, 0
		}
		part.Siblings = append(part.Siblings, s)
		size += len(s.Value)
	}
	return add(part.Encode(nil))
}

// packer collects records of one message in memory that is used again.
type packer struct {
	buf  []byte
	ends []int // of key and value of each record in buf
	out  []Record
	size int
}

// keptBytes is the memory that a packer keeps between messages.
const keptBytes = 2 * chunkBytes

func (p *packer) fits(key, value []byte) bool {
	return p.size == 0 || p.size+len(key)+len(value)+recordOverhead <= chunkBytes
}

func (p *packer) add(key, value []byte) {
	p.buf = append(p.buf, key...)
	p.ends = append(p.ends, len(p.buf))
	p.buf = append(p.buf, value...)
	p.ends = append(p.ends, len(p.buf))
	p.size += len(key) + len(value) + recordOverhead
}

// records returns what is together; it is valid until reset.
func (p *packer) records() []Record {
	start := 0
	for i := 0; i < len(p.ends); i += 2 {
		k, v := p.ends[i], p.ends[i+1]
		p.out = append(p.out, Record{Key: p.buf[start:k:k], Value: p.buf[k:v:v]})
		start = v
	}
	return p.out
}

func (p *packer) reset() {
	if cap(p.buf) > keptBytes {
		p.buf = nil
	}
	clear(p.out)
	p.buf, p.ends, p.out, p.size = p.buf[:0], p.ends[:0], p.out[:0], 0
}
