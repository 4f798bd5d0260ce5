package sstable

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable/block"
	"github.com/pairdb/pairdb/libs/sstable/filter"
	"github.com/pairdb/pairdb/libs/sstable/hashindex"
	"github.com/pairdb/pairdb/libs/vfs"
)

// WriterOptions says how a table is made. The zero value is a table without compression and filter.
type WriterOptions struct {
	// BlockBytes is where a data block ends, before compression; an entry is never split. 0 means
	// DefaultBlockBytes.
	BlockBytes int
	// Compression is how blocks are stored.
	Compression Compression
	// ValueBlockBytes is the length from which on a value gets a block of its own, so that a read
	// unpacks no other one and a merge copies it as it is. 0: none does.
	ValueBlockBytes int
	// FilterBitsPerKey is the size of the filter: 10 bits are wrong for 1 % of absent keys; 0 makes
	// none.
	FilterBitsPerKey int
	// IndexPartitionBytes is how large the index may be before it is cut into partitions, of which
	// a reader keeps only the index resident. 0 means 16 KiB, about 500 blocks: what a read that
	// finds nothing in the cache has to fetch beside its block.
	IndexPartitionBytes int
	// Inspect reports whether a value becomes collectible some day (a tombstone, an expiry) and at
	// which time; it feeds Meta.Tombstones and Meta.OldestCollectible. May be nil.
	Inspect func(value []byte) (collectible uint64, ok bool)
}

const (
	// DefaultBlockBytes is 4 KiB: what one point read has to fetch, check and unpack.
	DefaultBlockBytes = 4 << 10

	defaultPartitionBytes = 16 << 10
	// writeBufferBytes: a table of 64 MiB takes 256 writes.
	writeBufferBytes = 256 << 10
)

// Writer writes one table, sequentially from offset 0. It is for one goroutine.
type Writer struct {
	f   vfs.File
	o   WriterOptions
	err error // the first failure; sticky

	buf     []byte // bytes not yet written
	written uint64 // bytes in the file
	packed  []byte // scratch of pack
	digest  *xxhash.Digest

	data  block.Writer
	index block.Writer
	// Finished partitions of the index with the last key of each.
	partitions []partition
	// pending is the handle of the last data block, whose index entry waits for the next key.
	pending    handle
	hasPending bool
	separator  []byte
	// values are the value blocks of the data block that is being filled, without their checksums;
	// valueEnds is where each ends.
	values    []byte
	valueEnds []int
	entry     []byte // scratch: what stands in the data block for a value
	// located are the values for the hash index; those from unplaced on are in the data block that is
	// being filled. lastLocated says that the entry before is the last of them.
	located     []located
	unplaced    int
	lastLocated bool

	filter filter.Builder
	ranges []ikey.RangeDelete
	props  properties
	footer footer
}

// located is a value with its place: its offset counts from the first value block until the data block
// is written, from then on in the file.
type located struct {
	hash   uint64
	offset uint64
	length int
}

type partition struct {
	content []byte
	last    ikey.Key
}

// NewWriter returns a writer into f, which is new or was opened with OpenReadWrite; what it held
// before is overwritten. The caller keeps f: it syncs and closes it after Finish.
func NewWriter(f vfs.File, o WriterOptions) *Writer {
	if o.BlockBytes <= 0 {
		o.BlockBytes = DefaultBlockBytes
	}
	if o.IndexPartitionBytes <= 0 {
		o.IndexPartitionBytes = defaultPartitionBytes
	}
	o.BlockBytes = min(o.BlockBytes, maxBlockBytes)
	o.IndexPartitionBytes = min(o.IndexPartitionBytes, maxBlockBytes)
	o.FilterBitsPerKey = min(max(o.FilterBitsPerKey, 0), 64)
	w := &Writer{f: f, o: o, digest: xxhash.New()}
	w.index.RestartInterval = 1
	w.props.meta.MinSeq = ikey.MaxSeq
	w.props.blockBytes = uint64(o.BlockBytes)
	w.props.packing = uint64(o.Compression)
	w.props.filterBits = uint64(o.FilterBitsPerKey)
	if o.ValueBlockBytes > 0 {
		w.footer.features |= featureValueBlocks
	}
	if o.Compression > Zstd {
		w.err = fmt.Errorf("write table: %s does not exist", o.Compression)
	}
	header := encodeHeader()
	_, _ = w.digest.Write(header)
	w.buf = append(make([]byte, 0, writeBufferBytes+writeBufferBytes/4), header...)
	return w
}

// Add appends an entry. Keys ascend strictly (ErrOutOfOrder). The writer keeps no reference to k or
// value. After an error the writer is of no use.
func (w *Writer) Add(k ikey.Key, value []byte) error {
	apart := w.o.ValueBlockBytes > 0 && len(value) >= w.o.ValueBlockBytes
	inData := len(value)
	if apart {
		inData = 0
	}
	fresh, err := w.begin(k, len(value), inData)
	if err != nil {
		return err
	}
	plain := false
	if w.o.Inspect != nil && k.Kind() != ikey.KindDelete {
		plain = !w.inspect(value)
	}
	switch {
	case apart:
		payload, packing := pack(&w.packed, value, w.o.Compression)
		w.addApart(k, payload, packing, plain, fresh)
	case w.o.ValueBlockBytes > 0:
		tag := byte(0)
		if plain {
			tag = refPlain
		}
		w.entry = append(append(w.entry[:0], tag), value...)
		w.data.Add(k, w.entry)
	default:
		w.data.Add(k, value)
	}
	w.account(k, len(value), fresh)
	return nil
}

// AddStored is Add of a value that Takes allows, without unpacking it and packing it again.
func (w *Writer) AddStored(k ikey.Key, s Stored) error {
	fresh, err := w.begin(k, s.raw, 0)
	if err != nil {
		return err
	}
	w.addApart(k, s.payload, s.packing, s.plain && w.o.Inspect != nil, fresh)
	w.account(k, s.raw, fresh)
	return nil
}

// addApart adds an entry whose value gets a block of its own.
func (w *Writer) addApart(k ikey.Key, payload []byte, packing Compression, plain, fresh bool) {
	start := len(w.values)
	w.values = append(appendValueHeader(w.values, k), payload...)
	length := len(w.values) - start
	w.entry = appendRef(w.entry[:0], start, length, plain)
	w.values = append(w.values, byte(packing), 0, 0, 0, 0)
	if fresh && k.Kind() == ikey.KindSet && length <= hashindex.MaxLength {
		w.located = append(w.located, located{hash: filter.Hash(k.User), offset: uint64(start), length: length})
		w.lastLocated = true
	}
	w.valueEnds = append(w.valueEnds, len(w.values))
	w.data.Add(k, w.entry)
}

// begin checks an entry and makes room for it in the data block. fresh says that it has another
// engine key than the entry before.
func (w *Writer) begin(k ikey.Key, valueBytes, inData int) (fresh bool, err error) {
	if w.err != nil {
		return false, w.err
	}
	fresh = true
	if w.props.meta.Entries > 0 {
		last := w.data.Last()
		c := bytes.Compare(last.User, k.User)
		if c > 0 || c == 0 && last.Trailer <= k.Trailer {
			return false, w.fail(fmt.Errorf("%w: %s after %s", ErrOutOfOrder, k.Redacted(), last.Redacted()))
		}
		fresh = c != 0
	}
	if len(k.User) > MaxKeyBytes || valueBytes > MaxValueBytes {
		return false, w.fail(fmt.Errorf("%w: key of %d bytes, value of %d", ErrTooLarge, len(k.User), valueBytes))
	}
	if kind := k.Kind(); kind != ikey.KindSet && kind != ikey.KindMerge && kind != ikey.KindDelete {
		return false, w.fail(fmt.Errorf("write table: %s is not a point entry", k.Redacted()))
	}
	if w.o.ValueBlockBytes > 0 {
		inData += maxRefBytes
	}
	if w.lastLocated && !fresh {
		w.located = w.located[:len(w.located)-1] // the hash index has keys with one version only
		w.unplaced = min(w.unplaced, len(w.located))
	}
	w.lastLocated = false
	return fresh, w.cutBlock(k, inData)
}

// account counts an entry that was added.
func (w *Writer) account(k ikey.Key, valueBytes int, fresh bool) {
	m := &w.props.meta
	switch k.Kind() {
	case ikey.KindSet:
		m.Sets++
	case ikey.KindMerge:
		m.Merges++
	default:
		m.Deletes++
	}
	if m.Entries == 0 {
		m.Smallest = k.Clone()
	}
	m.Entries++
	m.MinSeq, m.MaxSeq = min(m.MinSeq, k.Seq()), max(m.MaxSeq, k.Seq())
	m.RawKeyBytes += uint64(len(k.User))
	m.RawValueBytes += uint64(valueBytes)
	if fresh && w.o.FilterBitsPerKey > 0 {
		w.filter.Add(filter.Hash(k.User))
	}
}

// inspect reports whether the value is collectible some day.
func (w *Writer) inspect(value []byte) bool {
	t, ok := w.o.Inspect(value)
	if ok {
		m := &w.props.meta
		if m.Tombstones == 0 || t < m.OldestCollectible {
			m.OldestCollectible = t
		}
		m.Tombstones++
	}
	return ok
}

// cutBlock ends the data block if k would make it too long, and writes the index entry that waited
// for the next key.
func (w *Writer) cutBlock(k ikey.Key, valueBytes int) error {
	if w.data.Entries() > 0 && (w.data.SizeWith(k, valueBytes) > w.o.BlockBytes || len(w.values) >= maxGroupBytes) {
		if err := w.finishBlock(); err != nil {
			return err
		}
	}
	if w.hasPending && w.data.Entries() == 0 {
		return w.indexPending(separate(w.data.Last(), k, &w.separator))
	}
	return nil
}

// separate returns a key that is not less than last and less than next, as short as it can be. It
// is last itself or in scratch.
func separate(last, next ikey.Key, scratch *[]byte) ikey.Key {
	n := 0
	for n < len(last.User) && n < len(next.User) && last.User[n] == next.User[n] {
		n++
	}
	// Cut last behind the first byte that can grow and stay below next.
	for i := n; i < len(last.User)-1; i++ {
		if c := last.User[i]; c < 0xff && (i > n || i < len(next.User) && c+1 < next.User[i]) {
			*scratch = append(append((*scratch)[:0], last.User[:i]...), c+1)
			return ikey.Key{User: *scratch}
		}
	}
	return last
}

func (w *Writer) finishBlock() error {
	h, err := w.writeBlock(w.data.Finish(), w.o.Compression)
	if err != nil {
		return err
	}
	h.values = uint64(len(w.values))
	if err := w.writeValues(h.end()); err != nil {
		return err
	}
	w.pending, w.hasPending = h, true
	w.props.dataBlocks++
	w.footer.dataEnd = h.groupEnd()
	w.data.Reset()
	return nil
}

// writeValues writes the value blocks, which begin at an offset of the file.
func (w *Writer) writeValues(at uint64) error {
	for i := w.unplaced; i < len(w.located); i++ {
		w.located[i].offset += at
	}
	w.unplaced = len(w.located)
	start := 0
	for _, end := range w.valueEnds {
		b := w.values[start:end]
		n := len(b) - trailerBytes
		binary.LittleEndian.PutUint32(b[n+1:], checksum(b[:n+1], at+uint64(start)))
		digestBlock(w.digest, uint64(n), b[n:])
		start = end
	}
	w.buf = append(w.buf, w.values...)
	w.values, w.valueEnds = w.values[:0], w.valueEnds[:0]
	if cap(w.values) > 4*maxGroupBytes {
		w.values = nil // one huge value must not pin its memory
	}
	if len(w.buf) >= writeBufferBytes {
		return w.flush()
	}
	return nil
}

func (w *Writer) indexPending(k ikey.Key) error {
	var enc [maxHandleBytes]byte
	value := w.pending.append(enc[:0])
	if w.index.Entries() > 0 && w.index.SizeWith(k, len(value)) > w.o.IndexPartitionBytes {
		w.cutPartition()
	}
	w.index.Add(k, value)
	w.hasPending = false
	return nil
}

func (w *Writer) cutPartition() {
	last := w.index.Last().Clone()
	w.partitions = append(w.partitions, partition{bytes.Clone(w.index.Finish()), last})
	w.index.Reset()
}

// AddRangeDelete adds a range delete; the order does not matter.
func (w *Writer) AddRangeDelete(d ikey.RangeDelete) error {
	if w.err != nil {
		return w.err
	}
	if bytes.Compare(d.Start, d.End) >= 0 {
		return w.fail(fmt.Errorf("write table: range delete [%s, %s) is empty", ikey.Hash(d.Start), ikey.Hash(d.End)))
	}
	if len(d.Start) > MaxKeyBytes || len(d.End) > MaxKeyBytes {
		return w.fail(fmt.Errorf("%w: range delete with keys of %d and %d bytes", ErrTooLarge, len(d.Start), len(d.End)))
	}
	w.ranges = append(w.ranges, ikey.RangeDelete{Start: bytes.Clone(d.Start), End: bytes.Clone(d.End), Seq: d.Seq})
	return nil
}

// EstimatedBytes returns about how large the file would be if it were finished now; the block that
// is being filled counts unpacked.
func (w *Writer) EstimatedBytes() uint64 {
	n := w.written + uint64(len(w.buf)) + uint64(w.data.SizeBytes()+len(w.values)) + uint64(w.index.SizeBytes()) + footerBytes
	for _, p := range w.partitions {
		n += uint64(len(p.content))
	}
	n += uint64(len(w.located)) * hashindex.LineBytes / 5
	if w.o.FilterBitsPerKey > 0 {
		n += uint64(w.filter.SizeBytes(w.o.FilterBitsPerKey))
	}
	return n
}

// Finish writes the rest of the table. The caller syncs and closes the file.
func (w *Writer) Finish() (Meta, error) {
	if w.err != nil {
		return Meta{}, w.err
	}
	if w.props.meta.Entries == 0 && len(w.ranges) == 0 {
		return Meta{}, w.fail(ErrEmpty)
	}
	for _, part := range []func() error{w.finishData, w.finishHashIndex, w.finishPartitions, w.finishFilter, w.finishRanges, w.finishIndex, w.finishFooter} {
		if err := part(); err != nil {
			return Meta{}, err
		}
	}
	m := w.props.meta
	m.Size, m.Digest = w.footer.size, w.footer.digest
	w.err = ErrFinished
	return m, nil
}

func (w *Writer) finishData() error {
	w.footer.dataEnd = max(w.footer.dataEnd, headerBytes)
	m := &w.props.meta
	if m.Entries == 0 {
		return nil
	}
	m.Largest = w.data.Last().Clone()
	if w.data.Entries() > 0 {
		if err := w.finishBlock(); err != nil {
			return err
		}
	}
	return w.indexPending(m.Largest)
}

// hashIndexOf collects what the hash index of a table has.
func hashIndexOf(values []located) (b hashindex.Builder) {
	for _, l := range values {
		if l.offset <= hashindex.MaxOffset {
			b.Add(l.hash, hashindex.Place{Offset: uint32(l.offset), Length: uint16(l.length)})
		}
	}
	return b
}

// finishHashIndex writes the hash index, if a value is in it.
func (w *Writer) finishHashIndex() error {
	b := hashIndexOf(w.located)
	if b.Len() == 0 {
		return nil
	}
	w.footer.hashLines = uint32(b.SizeBytes() / hashindex.LineBytes)
	_, err := w.writeBlock(b.Build(make([]byte, w.footer.hashPad(), w.footer.hashIndex().length)), None)
	return err
}

// finishPartitions writes the partitions and turns index into the index of them, if there is more
// than one.
func (w *Writer) finishPartitions() error {
	w.footer.levels = 1
	if len(w.partitions) == 0 {
		return nil
	}
	w.cutPartition()
	w.footer.levels = 2
	w.props.partitions = uint64(len(w.partitions))
	for _, p := range w.partitions {
		h, err := w.writeBlock(p.content, w.o.Compression)
		if err != nil {
			return err
		}
		w.index.Add(p.last, h.append(nil))
	}
	return nil
}

func (w *Writer) finishFilter() (err error) {
	w.props.filterKeys = uint64(w.filter.Len())
	if w.filter.Len() > 0 {
		w.footer.filter, err = w.writeBlock(w.filter.Build(w.o.FilterBitsPerKey), None)
	}
	return err
}

func (w *Writer) finishRanges() (err error) {
	if len(w.ranges) == 0 {
		return nil
	}
	w.ranges = sortRanges(w.ranges)
	m := &w.props.meta
	b := block.Writer{RestartInterval: 1}
	for i, d := range w.ranges {
		start, end := ikey.Make(d.Start, d.Seq, ikey.KindRangeDelete), RangeDeleteBound(d.End)
		b.Add(start, d.End)
		if m.Entries == 0 && i == 0 || ikey.Compare(start, m.Smallest) < 0 {
			m.Smallest = start
		}
		if m.Entries == 0 && i == 0 || ikey.Compare(end, m.Largest) > 0 {
			m.Largest = end
		}
		m.MinSeq, m.MaxSeq = min(m.MinSeq, d.Seq), max(m.MaxSeq, d.Seq)
	}
	m.RangeDeletes = uint64(len(w.ranges))
	w.footer.ranges, err = w.writeBlock(b.Finish(), None)
	return err
}

// sortRanges orders by start ascending, sequence descending, and keeps the longest of those that
// are equal in both.
func sortRanges(ranges []ikey.RangeDelete) []ikey.RangeDelete {
	slices.SortFunc(ranges, func(a, b ikey.RangeDelete) int {
		if c := ikey.Compare(ikey.Make(a.Start, a.Seq, ikey.KindRangeDelete), ikey.Make(b.Start, b.Seq, ikey.KindRangeDelete)); c != 0 {
			return c
		}
		return bytes.Compare(b.End, a.End)
	})
	return slices.CompactFunc(ranges, func(a, b ikey.RangeDelete) bool {
		return a.Seq == b.Seq && bytes.Equal(a.Start, b.Start)
	})
}

func (w *Writer) finishIndex() (err error) {
	w.footer.index, err = w.writeBlock(w.index.Finish(), w.o.Compression)
	if err == nil {
		w.footer.properties, err = w.writeBlock(w.props.append(nil), None)
	}
	return err
}

func (w *Writer) finishFooter() error {
	w.footer.size = w.written + uint64(len(w.buf)) + footerBytes
	w.footer.digest = w.footer.digestTail(w.digest)
	w.buf = w.footer.append(w.buf)
	if err := w.flush(); err != nil {
		return err
	}
	// A file from an earlier attempt may have been longer.
	info, err := w.f.Stat()
	if err == nil && uint64(info.Size()) > w.footer.size {
		err = w.f.Truncate(int64(w.footer.size))
	}
	if err != nil {
		return w.fail(fmt.Errorf("write table: %w", err))
	}
	return nil
}

// writeBlock appends a block with its trailer.
func (w *Writer) writeBlock(raw []byte, c Compression) (handle, error) {
	payload, c := pack(&w.packed, raw, c)
	h := handle{offset: w.written + uint64(len(w.buf)), length: uint64(len(payload))}
	start := len(w.buf)
	w.buf = append(w.buf, payload...)
	w.buf = append(w.buf, byte(c))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, checksum(w.buf[start:], h.offset))
	digestBlock(w.digest, h.length, w.buf[len(w.buf)-trailerBytes:])
	if len(w.buf) >= writeBufferBytes {
		return h, w.flush()
	}
	return h, nil
}

// digestBlock feeds the digest of the file: the length of each block and its trailer. So it costs
// nine bytes of hashing a block.
func digestBlock(d *xxhash.Digest, length uint64, trailer []byte) {
	var b [4 + trailerBytes]byte
	binary.LittleEndian.PutUint32(b[:], uint32(length))
	copy(b[4:], trailer)
	_, _ = d.Write(b[:])
}

func (w *Writer) flush() error {
	n, err := w.f.WriteAt(w.buf, int64(w.written))
	if err != nil {
		return w.fail(fmt.Errorf("write table: %w", err))
	}
	w.written += uint64(n)
	w.buf = w.buf[:0]
	return nil
}

func (w *Writer) fail(err error) error {
	w.err = err
	return err
}
