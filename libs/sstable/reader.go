package sstable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable/block"
	"github.com/pairdb/pairdb/libs/sstable/filter"
	"github.com/pairdb/pairdb/libs/vfs"
)

// BlockCache keeps unpacked, checked blocks. Blocks are immutable and belong to the garbage
// collector: a reader goes on using one that the cache has dropped. Implementations are safe for
// concurrent use and allocate nothing in Get.
type BlockCache interface {
	// Get returns the block at an offset of a file, nil if it is not there.
	Get(file, offset uint64) []byte
	// Put offers a block; the cache may keep it. Nobody changes it afterwards.
	Put(file, offset uint64, block []byte)
}

// ReaderOptions says how a table is read.
type ReaderOptions struct {
	// Cache keeps blocks; nil reads each from the file. FileNum is the table's name in it and must
	// never be used again for another table.
	Cache   BlockCache
	FileNum uint64
	// Name is the file in errors; empty: made from FileNum.
	Name string
	// NoHashIndex makes Get search the index, also where the hash index of a mapped table would do.
	NoHashIndex bool
}

// Reader is an open table. It is safe for concurrent use, except Close.
type Reader struct {
	f    vfs.File
	o    ReaderOptions
	foot footer

	props  properties
	index  []byte // the only level, or the upper one
	filter filter.Filter
	ranges []ikey.RangeDelete

	mapping atomic.Pointer[mapped]
	closed  atomic.Bool
}

// Open reads footer, properties, filter, range deletes and the upper index of a table; they stay
// resident. The reader owns f, also when Open fails: then f is closed.
func Open(f vfs.File, o ReaderOptions) (*Reader, error) {
	if o.Name == "" {
		o.Name = fmt.Sprintf("%06d.sst", o.FileNum)
	}
	r := &Reader{f: f, o: o}
	if err := r.open(); err != nil {
		_ = f.Close()
		return nil, err
	}
	return r, nil
}

func (r *Reader) open() error {
	if err := r.readFooter(); err != nil {
		return err
	}
	tail, at, err := r.readTail()
	if err != nil {
		return err
	}
	part := func(h handle) ([]byte, error) {
		b := tail[h.offset-at:]
		return r.checkBlock(h, b[:h.length+trailerBytes:h.length+trailerBytes], nil)
	}
	b, err := part(r.foot.properties)
	if err != nil {
		return err
	}
	if r.props, err = decodeProperties(b); err != nil {
		return r.corrupt(r.foot.properties.offset, err.Error())
	}
	r.props.meta.Size, r.props.meta.Digest = r.foot.size, r.foot.digest
	if r.foot.filter != (handle{}) {
		if b, err = part(r.foot.filter); err != nil {
			return err
		}
		if r.filter, err = filter.Parse(b); err != nil {
			return r.corrupt(r.foot.filter.offset, err.Error())
		}
	}
	if r.foot.ranges != (handle{}) {
		if b, err = part(r.foot.ranges); err != nil {
			return err
		}
		if r.ranges, err = decodeRanges(b); err != nil {
			return r.corrupt(r.foot.ranges.offset, err.Error())
		}
	}
	if uint64(len(r.ranges)) != r.props.meta.RangeDeletes {
		return r.corrupt(r.foot.properties.offset, fmt.Sprintf("%d range deletes, the properties say %d", len(r.ranges), r.props.meta.RangeDeletes))
	}
	r.index, err = part(r.foot.index)
	return err
}

// readFooter checks header and footer.
func (r *Reader) readFooter() error {
	info, err := r.f.Stat()
	if err != nil {
		return fmt.Errorf("open table %s: %w", r.o.Name, err)
	}
	size := info.Size()
	if size < headerBytes+footerBytes {
		return r.corrupt(0, fmt.Sprintf("%d bytes are too short for a table", size))
	}
	b := make([]byte, footerBytes)
	if err := r.readAt(b[:headerBytes], 0); err != nil {
		return err
	}
	if what, newer := checkHeader(b); what != "" {
		return &CorruptionError{File: r.o.Name, What: what, newer: newer}
	}
	at := uint64(size) - footerBytes
	if err := r.readAt(b, at); err != nil {
		return err
	}
	foot, what, newer := decodeFooter(b, uint64(size))
	if what != "" {
		return &CorruptionError{File: r.o.Name, Offset: at, What: what, newer: newer}
	}
	r.foot = foot
	return nil
}

// readTail reads what is resident, from the filter to the footer, in one piece. The filter's lines
// are put on cache lines.
func (r *Reader) readTail() (tail []byte, at uint64, err error) {
	at = r.foot.index.offset
	for _, h := range []handle{r.foot.ranges, r.foot.filter} {
		if h != (handle{}) {
			at = h.offset
		}
	}
	n := int(r.foot.size - footerBytes - at)
	b := make([]byte, n+filter.LineBytes)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (filter.LineBytes - 1)
	tail = b[skip : skip+n : skip+n]
	return tail, at, r.readAt(tail, at)
}

func decodeRanges(b []byte) ([]ikey.RangeDelete, error) {
	var it block.Iter
	if err := it.Init(b); err != nil {
		return nil, err
	}
	var out []ikey.RangeDelete
	for ok := it.First(); ok; ok = it.Next() {
		k := it.Key()
		if k.Kind() != ikey.KindRangeDelete {
			return nil, errors.New("range-delete block with another kind")
		}
		if string(k.User) >= string(it.Value()) {
			return nil, errors.New("empty range delete")
		}
		// The keys have restarts of their own, so they alias the block.
		out = append(out, ikey.RangeDelete{Start: append([]byte(nil), k.User...), End: it.Value(), Seq: k.Seq()})
	}
	return out, it.Err()
}

// readAt fills b from the file. An end of the file before that is damage: the footer was behind it.
func (r *Reader) readAt(b []byte, at uint64) error {
	n, err := r.f.ReadAt(b, int64(at))
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return r.corrupt(at+uint64(n), "file is truncated")
	}
	return fmt.Errorf("read table %s at %d: %w", r.o.Name, at, err)
}

func (r *Reader) corrupt(at uint64, what string) error {
	return &CorruptionError{File: r.o.Name, Offset: at, What: what}
}

// stored checks the trailer of a block as it is in the file and returns payload and compression.
func (r *Reader) stored(h handle, b []byte) (payload []byte, c Compression, err error) {
	n := len(b) - 4
	want := uint32(b[n]) | uint32(b[n+1])<<8 | uint32(b[n+2])<<16 | uint32(b[n+3])<<24
	if checksum(b[:n], h.offset) != want {
		return nil, 0, r.corrupt(h.offset, "block checksum mismatch")
	}
	c = Compression(b[n-1])
	if c > Zstd {
		return nil, 0, r.corrupt(h.offset, fmt.Sprintf("block has %s", c))
	}
	return b[: n-1 : n-1], c, nil
}

// checkBlock returns the content of a block from its bytes in the file. It aliases b if it was not
// packed; otherwise it is in *scratch, or in fresh memory if scratch is nil.
func (r *Reader) checkBlock(h handle, b []byte, scratch *[]byte) ([]byte, error) {
	payload, c, err := r.stored(h, b)
	if err != nil || c == None {
		return payload, err
	}
	return r.unpackBlock(h, payload, c, scratch)
}

// unpackBlock unpacks the checked payload of a block into *scratch, or into fresh memory if scratch is
// nil.
func (r *Reader) unpackBlock(h handle, payload []byte, c Compression, scratch *[]byte) ([]byte, error) {
	n, ok := rawLen(payload)
	if !ok {
		return nil, r.corrupt(h.offset, "packed block has a bad length")
	}
	var out []byte
	if scratch != nil && cap(*scratch) >= n {
		out = (*scratch)[:n]
	} else {
		out = make([]byte, n)
	}
	if scratch != nil {
		*scratch = out
	}
	if !unpack(out, payload, c) {
		return nil, r.corrupt(h.offset, "packed block does not unpack")
	}
	return out, nil
}

// readBuffers hold packed blocks while they are checked and unpacked.
var readBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 8<<10); return &b }}

// maxPooledBytes: one block with a huge value must not stay in the pool.
const maxPooledBytes = 1 << 20

// loadBlock returns a block that was not in the cache, in memory of its own.
func (r *Reader) loadBlock(h handle) ([]byte, error) {
	if m := r.mapped(); m != nil {
		return r.copyMapped(m, h)
	}
	return r.readBlock(h)
}

// readBlock reads a block from the file into memory of its own.
func (r *Reader) readBlock(h handle) ([]byte, error) {
	n := int(h.length) + trailerBytes
	if Compression(r.props.packing) == None {
		b := make([]byte, n)
		if err := r.readAt(b, h.offset); err != nil {
			return nil, err
		}
		return r.checkBlock(h, b, nil)
	}
	p := readBuffers.Get().(*[]byte)
	if cap(*p) < n {
		*p = make([]byte, n)
	}
	b := (*p)[:n]
	out, err := []byte(nil), r.readAt(b, h.offset)
	if err == nil {
		out, err = r.checkBlock(h, b, nil)
	}
	if err == nil && len(out) > 0 && &out[0] == &b[0] {
		out = append(make([]byte, 0, len(out)), out...) // stored unpacked: the buffer goes back
	}
	if cap(*p) <= maxPooledBytes {
		readBuffers.Put(p)
	}
	return out, err
}

// copyBlock is checkBlock whose result never aliases b.
func (r *Reader) copyBlock(h handle, b []byte) ([]byte, error) {
	if Compression(b[h.length]) == None {
		// Copied first: what is checked is what is handed out.
		payload, _, err := r.stored(h, bytes.Clone(b))
		return payload, err
	}
	return r.checkBlock(h, b, nil)
}

// block returns the block of a handle from the cache or the file.
func (r *Reader) block(h handle) ([]byte, error) {
	if r.o.Cache == nil {
		return r.loadBlock(h)
	}
	if b := r.o.Cache.Get(r.o.FileNum, h.offset); b != nil {
		return b, nil
	}
	b, err := r.loadBlock(h)
	if err == nil {
		r.o.Cache.Put(r.o.FileNum, h.offset, b)
	}
	return b, err
}

// partitionHandle and dataHandle decode the value of an index entry and check where it points.
func (r *Reader) partitionHandle(value []byte) (handle, error) {
	return r.indexHandle(value, r.foot.behindData(), r.foot.index.offset)
}

func (r *Reader) dataHandle(value []byte) (handle, error) {
	return r.indexHandle(value, headerBytes, r.foot.dataEnd)
}

func (r *Reader) indexHandle(value []byte, from, to uint64) (handle, error) {
	h, ok := decodeHandle(value)
	if !ok || !h.within(from, to) || h.values > 0 && !r.separates() {
		return h, r.corrupt(r.foot.index.offset, "index points to a place where no block can be")
	}
	return h, nil
}

// malformed is the error for a block that has a good checksum and makes no sense: the writer was
// broken, or somebody made the file up.
func (r *Reader) malformed(at uint64) error { return r.corrupt(at, "malformed block") }

// Get returns the newest entry of user with a sequence of at most seq: its trailer and value. ok is
// false if there is none; range deletes are not looked at. It asks the filter nothing: callers take
// filter.Hash of the key once for all tables and call MayContain. The value either aliases an immutable block, and
// stays valid as long as it is referenced, or was written to scratch[:0], which grows if it must.
// With all blocks in the cache and a scratch that is large enough Get allocates nothing.
func (r *Reader) Get(user []byte, hash uint64, seq ikey.Seq, scratch []byte) (t ikey.Trailer, value []byte, ok bool, err error) {
	if m := r.mapped(); m != nil && r.foot.hashLines > 0 && !r.o.NoHashIndex {
		if value, at, ok := r.probe(m, user, hash, seq, scratch); ok {
			return ikey.MakeTrailer(at, ikey.KindSet), value, at <= seq, nil
		}
	}
	k := ikey.Search(user, seq)
	at := r.foot.index.offset
	f, ok, err := block.Seek(r.index, k)
	if err != nil {
		return 0, nil, false, r.malformed(at)
	}
	if ok && r.foot.levels == 2 {
		if f, _, ok, err = r.descend(f, k, r.foot.behindData(), at); err != nil {
			return 0, nil, false, err
		}
	}
	if !ok {
		return 0, nil, false, nil
	}
	f, h, ok, err := r.descend(f, k, headerBytes, r.foot.dataEnd)
	if err != nil || !ok || !f.Same {
		return 0, nil, false, err
	}
	value, err = r.value(h, f.Value, scratch)
	return f.Trailer, value, err == nil, err
}

// descend seeks k in the block h that an index entry points to.
func (r *Reader) descend(entry block.Found, k ikey.Key, from, to uint64) (f block.Found, h handle, ok bool, err error) {
	h, err = r.indexHandle(entry.Value, from, to)
	if err != nil {
		return f, h, false, err
	}
	b, err := r.block(h)
	if err != nil {
		return f, h, false, err
	}
	if f, ok, err = block.Seek(b, k); err != nil {
		err = r.malformed(h.offset)
	}
	return f, h, ok, err
}

// MayContain reports whether the table may hold entries of the engine key with this filter.Hash;
// no is certain. Range deletes are not in the filter.
func (r *Reader) MayContain(hash uint64) bool { return r.filter.MayContain(hash) }

// RangeDeletes returns the range deletes, ascending by start, then descending by sequence. They may
// overlap. The caller does not change them.
func (r *Reader) RangeDeletes() []ikey.RangeDelete { return r.ranges }

// Meta returns what Finish of the writer returned. The caller does not change the keys.
func (r *Reader) Meta() Meta { return r.props.meta }

// Name returns the file in errors.
func (r *Reader) Name() string { return r.o.Name }

// ResidentBytes returns the memory that the reader keeps, for the limit of open tables.
func (r *Reader) ResidentBytes() int {
	n := len(r.index) + r.filter.SizeBytes()
	for _, d := range r.ranges {
		n += len(d.Start) + len(d.End) + int(unsafe.Sizeof(d))
	}
	return n
}

// ApproximateOffset returns about where in the file entries of key begin, for estimates: the start
// of a data block, or the end of the data. It reads at most one index block; an error counts as the
// end.
func (r *Reader) ApproximateOffset(key []byte) uint64 {
	k := ikey.Search(key, ikey.MaxSeq)
	f, ok, err := block.Seek(r.index, k)
	if ok && err == nil && r.foot.levels == 2 {
		f, _, ok, err = r.descend(f, k, r.foot.behindData(), r.foot.index.offset)
	}
	if !ok || err != nil {
		return r.foot.dataEnd
	}
	h, err := r.dataHandle(f.Value)
	if err != nil {
		return r.foot.dataEnd
	}
	return min(h.offset, math.MaxInt64)
}

// Close closes the file. Nothing may use the reader or its iterators any more. It is idempotent.
func (r *Reader) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	return errors.Join(r.unmap(), r.f.Close())
}
