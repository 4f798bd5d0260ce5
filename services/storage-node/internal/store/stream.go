package store

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
)

// StreamRequest asks for the records of a tenant in [Start, End) whose tokens are in HashRanges, if
// there are any.
type StreamRequest struct {
	Tenant, Start, End string
	HashRanges         []ring.HashRange
	// Cursor continues after that chunk of an earlier stream of the same request, in a new
	// snapshot.
	Cursor string
	// IncludeTombstones also sends records without a live value.
	IncludeTombstones bool
}

// StreamRecord is the whole record of a key, with tombstones and expired values.
type StreamRecord struct {
	Key      string
	Siblings []causal.Sibling
}

// View returns what a Read at the given Unix second would return of the record, but for Buf. Values are
// shared.
func (r *StreamRecord) View(nowUnix int64) ReadResult {
	return view(causal.Record{Siblings: r.Siblings}, nowUnix)
}

// Chunk is a part of a stream. Its values are valid until the callback returns.
type Chunk struct {
	// Records may be empty: then only the cursor has moved, or there is no record at all.
	Records []StreamRecord
	Cursor  string
	// Sequence is that of the snapshot: every change up to it is in it, none after it.
	Sequence uint64
}

const (
	// chunkBytes: messages of 48 KiB stay below the 64 KiB up to which gRPC streams are fast.
	chunkBytes = 48 << 10
	// idleScan is how many records are passed over before a chunk tells the cursor all the same.
	idleScan = 100_000
	// chunksPerIter is how many chunks one engine iterator serves: 3 MiB, or as many times idleScan
	// records. A new one from the same snapshot lets go of memtables and files that the old pinned.
	chunksPerIter = 64
)

// Stream calls send with the records of a range in key order, all from one snapshot, at least once.
// send blocks for as long as the receiver is slow; its error ends the stream and is returned.
func (s *Store) Stream(ctx context.Context, r StreamRequest, send func(Chunk) error) error {
	lower, upper, err := bounds(r.Tenant, r.Start, r.End)
	if err != nil {
		return err
	}
	if len(r.HashRanges) > MaxHashRanges {
		return refuse(ReasonRange, "%d hash ranges, at most %d allowed", len(r.HashRanges), MaxHashRanges)
	}
	w := walk{
		s: s, r: &r, send: send, lower: lower, upper: upper, prefix: len(r.Tenant) + 1, now: s.now().Unix(),
		tenant: []byte(r.Tenant), token: make([]byte, 0, MaxTenantBytes+1+MaxKeyBytes),
	}
	w.request = requestDigest([]byte(r.Tenant), lower, upper, hashRangeBytes(r.HashRanges), flagByte(r.IncludeTombstones))
	if r.Cursor != "" {
		last, err := parsePosition(r.Cursor, streamKind, w.request, ReasonCursor)
		if err != nil {
			return err
		}
		if w.lower, err = after(r.Tenant, last, lower, upper, ReasonCursor); err != nil {
			return err
		}
	}
	if w.admission, err = s.admitStream(r.Tenant); err != nil {
		return err
	}
	defer w.admission.Release()
	snap := s.e.NewSnapshot()
	w.seq = snap.Seq()
	if err = s.e.WaitDurable(w.seq); err == nil { // in modes in which readers see what a crash may take
		err = w.run(ctx, snap)
	}
	if cerr := snap.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("stream: %w", cerr)
	}
	return err
}

func hashRangeBytes(ranges []ring.HashRange) []byte {
	var b []byte
	for _, r := range ranges {
		b = binary.BigEndian.AppendUint64(b, r.Start)
		b = binary.BigEndian.AppendUint64(b, r.End)
	}
	return b
}

func flagByte(f bool) []byte {
	if f {
		return []byte{1}
	}
	return []byte{0}
}

// walk is one stream on its way.
type walk struct {
	s            *Store
	r            *StreamRequest
	send         func(Chunk) error
	admission    StreamAdmission
	lower, upper []byte
	prefix       int // of tenant and separator in engine keys
	now          int64
	request      [8]byte
	tenant       []byte
	token        []byte // room for what is hashed

	seq  ikey.Seq // of the snapshot
	sent bool

	records []StreamRecord
	parcel  parcel
	last    []byte // user key that was looked at last
	scanned int    // records since the last chunk
	chunks  int    // since the last iterator
}

func (w *walk) run(ctx context.Context, snap Snapshot) error {
	for {
		more, err := w.part(ctx, snap)
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	if len(w.records) == 0 && w.sent {
		return nil
	}
	return w.flush(ctx)
}

// part walks with one engine iterator. more: there may be more, from w.lower on.
func (w *walk) part(ctx context.Context, snap Snapshot) (more bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	it, err := snap.NewIter(w.lower, w.upper)
	if err != nil {
		return false, fmt.Errorf("stream: %w", err)
	}
	defer func() {
		if cerr := it.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("stream: %w", cerr)
		}
	}()
	w.chunks = 0
	for ok := it.First(); ok; ok = it.Next() {
		if w.scanned%256 == 255 {
			if err := ctx.Err(); err != nil {
				return false, err
			}
		}
		if err := w.take(ctx, it.Key(), it.Value()); err != nil {
			return false, err
		}
		if w.chunks >= chunksPerIter {
			w.lower = append(append(w.lower[:0], it.Key()...), 0x00)
			return true, nil
		}
	}
	return false, nil // Close returns the iterator's error
}

// take looks at one record, and sends what is together when the record does not fit beside it.
func (w *walk) take(ctx context.Context, key, value []byte) error {
	wanted, err := w.wants(key, value)
	if err != nil {
		return err
	}
	if wanted {
		if err := w.add(ctx, key, value); err != nil {
			return err
		}
	}
	w.scanned++
	w.last = append(w.last[:0], key[w.prefix:]...)
	if w.scanned >= idleScan {
		return w.flush(ctx)
	}
	return nil
}

func (w *walk) add(ctx context.Context, key, value []byte) error {
	for {
		rec, fits, err := w.parcel.add(len(key), value)
		if err != nil {
			return corrupted(key, err)
		}
		if fits {
			w.records = append(w.records, StreamRecord{Key: string(key[w.prefix:]), Siblings: rec.Siblings})
			return nil
		}
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
}

func (w *walk) wants(key, value []byte) (bool, error) {
	if !w.owned(key[w.prefix:]) {
		return false, nil
	}
	sum, err := causal.Summarize(value, w.now)
	if err != nil {
		return false, corrupted(key, err)
	}
	return sum.Live > 0 || sum.Siblings > 0 && w.r.IncludeTombstones, nil
}

func (w *walk) owned(user []byte) bool {
	if len(w.r.HashRanges) == 0 {
		return true
	}
	token := ring.TokenOf(w.token[:0], w.tenant, user)
	for _, h := range w.r.HashRanges {
		if h.Contains(token) {
			return true
		}
	}
	return false
}

func (w *walk) flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.admission.Pace(ctx, len(w.records), w.parcel.bytes); err != nil {
		return err
	}
	c := Chunk{Records: w.records, Cursor: w.r.Cursor, Sequence: feedSequence(w.seq)}
	if len(w.last) > 0 {
		c.Cursor = position{kind: streamKind, request: w.request, last: string(w.last)}.String()
	}
	if err := w.send(c); err != nil {
		return err
	}
	w.sent = true
	w.s.counts.scanRecords.Add(uint64(len(w.records)))
	w.s.counts.scanBytes.Add(uint64(w.parcel.bytes))
	clear(w.records)
	w.records, w.scanned, w.chunks = w.records[:0], 0, w.chunks+1
	w.parcel.reset()
	return nil
}
