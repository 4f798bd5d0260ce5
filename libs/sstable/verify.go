package sstable

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable/block"
	"github.com/pairdb/pairdb/libs/sstable/filter"
	"github.com/pairdb/pairdb/libs/sstable/hashindex"
)

// Verify reads every byte of the file again, past the block cache and, where the system allows,
// the page cache, and checks all there is to check: checksums, digest, that the blocks follow each
// other without gaps, order, separators, counts, bounds, and that the filter has every key. It
// returns a *CorruptionError for damage and ctx.Err() when ctx ends. progress, unless nil, is called
// with the bytes read since the last call; their sum is the size of the file.
func (r *Reader) Verify(ctx context.Context, progress func(n int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	r.f.DontNeed(0, int64(r.foot.size))
	fresh := &Reader{f: r.f, o: ReaderOptions{FileNum: r.o.FileNum, Name: r.o.Name}}
	if err := fresh.open(); err != nil {
		return err
	}
	if fresh.foot != r.foot {
		return r.corrupt(r.foot.size-footerBytes, "footer differs from the one at open")
	}
	v := &verifier{r: fresh, digest: xxhash.New(), progress: progress}
	v.props.meta.MinSeq = ikey.MaxSeq
	v.scan = &scan{r: fresh, o: ScanOptions{DropBehind: true, OnRead: func(int) error { return ctx.Err() }}}
	err := v.run(ctx)
	v.scan.close()
	r.f.DontNeed(int64(r.foot.dataEnd), int64(r.foot.size-r.foot.dataEnd))
	return err
}

// verifier is the state of one verification.
type verifier struct {
	r        *Reader
	scan     *scan
	digest   *xxhash.Digest
	progress func(int64)

	at    uint64 // where the next block must begin
	data  block.Iter
	props properties // counted again
	last  ikey.Key   // the entry before; a copy
	sep   ikey.Key   // the separator before; a copy

	unpacked []byte // scratch: a value
	// As in the writer.
	located     []located
	lastLocated bool
}

// hashIndex checks that the hash index is what the entries make of it.
func (v *verifier) hashIndex() error {
	r := v.r
	h := r.foot.hashIndex()
	b := hashIndexOf(v.located)
	if b.SizeBytes() != int(r.foot.hashLines)*hashindex.LineBytes {
		return r.corrupt(r.foot.dataEnd, "hash index has another size than its keys need")
	}
	if h == (handle{}) {
		return nil
	}
	got, err := v.stored(h)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, b.Build(make([]byte, r.foot.hashPad()))) {
		return r.corrupt(h.offset, "hash index does not match the entries")
	}
	return nil
}

func (v *verifier) run(ctx context.Context) error {
	r := v.r
	header := make([]byte, headerBytes)
	if err := r.readAt(header, 0); err != nil {
		return err
	}
	_, _ = v.digest.Write(header)
	v.progress(headerBytes)
	v.at = headerBytes

	leaves, err := v.leaves()
	if err != nil {
		return err
	}
	for _, leaf := range leaves {
		if err := v.leaf(ctx, leaf.content); err != nil {
			return err
		}
	}
	if v.at != r.foot.dataEnd {
		return r.corrupt(v.at, "data that the index does not know")
	}
	if err := v.hashIndex(); err != nil {
		return err
	}
	if r.foot.levels == 2 {
		for _, leaf := range leaves {
			if _, err := v.stored(leaf.h); err != nil {
				return err
			}
		}
	}
	for _, h := range []handle{r.foot.filter, r.foot.ranges, r.foot.index, r.foot.properties} {
		if h == (handle{}) {
			continue
		}
		if _, err := v.stored(h); err != nil {
			return err
		}
	}
	v.progress(footerBytes)
	if got := r.foot.digestTail(v.digest); got != r.foot.digest {
		return r.corrupt(r.foot.size-footerBytes, fmt.Sprintf("digest is %016x, the footer says %016x", got, r.foot.digest))
	}
	return v.compareProperties()
}

// leafBlock is one block of the lower index.
type leafBlock struct {
	h       handle
	content []byte
}

// leaves loads the whole lower index and checks that the upper one bounds it. It is about 1 % of
// the table.
func (v *verifier) leaves() ([]leafBlock, error) {
	r := v.r
	at := r.foot.index.offset
	if err := block.Check(r.index); err != nil {
		return nil, r.corrupt(at, err.Error())
	}
	if r.foot.levels == 1 {
		return []leafBlock{{r.foot.index, r.index}}, nil
	}
	var out []leafBlock
	var top, leaf block.Iter
	_ = top.Init(r.index)
	for ok := top.First(); ok; ok = top.Next() {
		h, err := r.partitionHandle(top.Value())
		if err != nil {
			return nil, err
		}
		b, err := r.readBlock(h)
		if err != nil {
			return nil, err
		}
		if err := block.Check(b); err != nil {
			return nil, r.corrupt(h.offset, err.Error())
		}
		if _ = leaf.Init(b); !leaf.Last() || ikey.Compare(leaf.Key(), top.Key()) != 0 {
			return nil, r.corrupt(at, "index of partitions does not match them")
		}
		out = append(out, leafBlock{h, b})
	}
	if uint64(len(out)) != r.props.partitions {
		return nil, r.corrupt(at, "number of index partitions differs from the properties")
	}
	return out, nil
}

// leaf verifies the data blocks of one block of the lower index.
func (v *verifier) leaf(ctx context.Context, b []byte) error {
	r := v.r
	var it block.Iter
	_ = it.Init(b)
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.dataHandle(it.Value())
		if err != nil {
			return err
		}
		content, err := v.dataBlock(h)
		if err != nil {
			return err
		}
		if err := v.entries(h, content, it.Key()); err != nil {
			return err
		}
		v.sep.User = append(v.sep.User[:0], it.Key().User...)
		v.sep.Trailer = it.Key().Trailer
		v.props.dataBlocks++
	}
	return nil
}

// dataBlock reads the data block h, which must follow the one before.
func (v *verifier) dataBlock(h handle) ([]byte, error) {
	if h.offset != v.at {
		return nil, v.r.corrupt(h.offset, fmt.Sprintf("data block expected at %d", v.at))
	}
	content, err := v.scan.block(v.r, h)
	if err != nil {
		return nil, err
	}
	at := h.offset - v.scan.at
	digestBlock(v.digest, h.length, v.scan.chunk[at+h.length:at+h.length+trailerBytes])
	v.at = h.end()
	v.progress(int64(h.length + trailerBytes))
	return content, nil
}

// value verifies the value of an entry of data block h and returns it; its block, if it has one,
// must follow the one before. fresh says that the entry before has another engine key.
func (v *verifier) value(h handle, k ikey.Key, entry []byte, fresh bool) ([]byte, error) {
	r := v.r
	if v.lastLocated && !fresh {
		v.located = v.located[:len(v.located)-1] // as the writer does
	}
	v.lastLocated = false
	if !r.separates() {
		return entry, nil
	}
	ref, ok := decodeRef(h, entry)
	if !ok {
		return nil, r.malformed(h.offset)
	}
	if !ref.apart {
		return ref.inline, nil
	}
	at := ref.block(h)
	if at.offset != v.at {
		return nil, r.corrupt(at.offset, fmt.Sprintf("value block expected at %d", v.at))
	}
	b := v.scan.bytes(at)
	payload, packing, err := r.stored(at, b)
	if err != nil {
		return nil, err
	}
	user, seq, value, ok := splitValue(payload)
	if !ok || seq != k.Seq() || !bytes.Equal(user, k.User) {
		return nil, r.corrupt(at.offset, fmt.Sprintf("value block is not that of %s", k.Redacted()))
	}
	if packing != None {
		if value, err = r.unpackBlock(at, value, packing, &v.unpacked); err != nil {
			return nil, err
		}
	}
	if fresh && k.Kind() == ikey.KindSet && at.length <= hashindex.MaxLength {
		v.located = append(v.located, located{hash: filter.Hash(k.User), offset: at.offset, length: int(at.length)})
		v.lastLocated = true
	}
	digestBlock(v.digest, at.length, b[at.length:])
	v.at = at.end()
	v.progress(int64(len(b)))
	return value, nil
}

// stored reads a block behind the data again, checks it and feeds the digest.
func (v *verifier) stored(h handle) ([]byte, error) {
	if h.offset != v.at {
		return nil, v.r.corrupt(h.offset, fmt.Sprintf("block expected at %d", v.at))
	}
	b := make([]byte, h.length+trailerBytes)
	if err := v.r.readAt(b, h.offset); err != nil {
		return nil, err
	}
	content, err := v.r.checkBlock(h, b, nil)
	if err != nil {
		return nil, err
	}
	digestBlock(v.digest, h.length, b[h.length:])
	v.at = h.end()
	v.progress(int64(len(b)))
	return content, nil
}

// entries verifies the content of a data block and counts it.
func (v *verifier) entries(h handle, content []byte, separator ikey.Key) error {
	r, m := v.r, &v.props.meta
	if err := block.Check(content); err != nil {
		return r.corrupt(h.offset, err.Error())
	}
	bad := func(what string, k ikey.Key) error {
		return r.corrupt(h.offset, fmt.Sprintf("%s: %s", what, k.Redacted()))
	}
	_ = v.data.Init(content)
	for ok := v.data.First(); ok; ok = v.data.Next() {
		k := v.data.Key()
		first := m.Entries == 0
		if !first && (ikey.Compare(v.last, k) >= 0 || ikey.Compare(v.sep, k) >= 0 && v.props.dataBlocks > 0) {
			return bad("entry out of order", k)
		}
		if ikey.Compare(k, separator) > 0 {
			return bad("entry behind its separator", k)
		}
		if first || !bytes.Equal(v.last.User, k.User) {
			v.props.filterKeys++
			if hash := filter.Hash(k.User); !r.MayContain(hash) {
				return bad("filter denies a key", k)
			}
		}
		value, err := v.value(h, k, v.data.Value(), first || !bytes.Equal(v.last.User, k.User))
		if err != nil {
			return err
		}
		if !v.count(k, value) {
			return bad("entry of a kind that tables do not have", k)
		}
		v.last.User, v.last.Trailer = append(v.last.User[:0], k.User...), k.Trailer
	}
	if err := v.data.Err(); err != nil {
		return r.corrupt(h.offset, err.Error())
	}
	if v.at != h.groupEnd() {
		return r.corrupt(v.at, "value block that no entry refers to")
	}
	return nil
}

func (v *verifier) count(k ikey.Key, value []byte) bool {
	m := &v.props.meta
	switch k.Kind() {
	case ikey.KindSet:
		m.Sets++
	case ikey.KindMerge:
		m.Merges++
	case ikey.KindDelete:
		m.Deletes++
	default:
		return false
	}
	if m.Entries == 0 {
		m.Smallest = k.Clone()
	}
	m.Entries++
	m.RawKeyBytes += uint64(len(k.User))
	m.RawValueBytes += uint64(len(value))
	m.MinSeq, m.MaxSeq = min(m.MinSeq, k.Seq()), max(m.MaxSeq, k.Seq())
	return true
}

// compareProperties compares what was counted with what the properties say. Tombstones cannot be
// counted without knowing values.
func (v *verifier) compareProperties() error {
	r, got := v.r, &v.props
	m := &got.meta
	m.Largest = v.last
	for i, d := range r.ranges {
		start, end := ikey.Make(d.Start, d.Seq, ikey.KindRangeDelete), RangeDeleteBound(d.End)
		if m.Entries == 0 && i == 0 || ikey.Compare(start, m.Smallest) < 0 {
			m.Smallest = start
		}
		if m.Entries == 0 && i == 0 || ikey.Compare(end, m.Largest) > 0 {
			m.Largest = end
		}
		m.MinSeq, m.MaxSeq = min(m.MinSeq, d.Seq), max(m.MaxSeq, d.Seq)
	}
	m.RangeDeletes = uint64(len(r.ranges))
	want := r.props
	m.Tombstones, m.OldestCollectible = want.meta.Tombstones, want.meta.OldestCollectible
	got.partitions, got.blockBytes, got.packing, got.filterBits = want.partitions, want.blockBytes, want.packing, want.filterBits
	if want.filterBits == 0 {
		got.filterKeys = 0
	}
	if (got.filterKeys > 0) != (r.foot.filter != handle{}) {
		return r.corrupt(r.foot.properties.offset, "filter is missing or too much")
	}
	if !bytes.Equal(got.append(nil), want.append(nil)) {
		return r.corrupt(r.foot.properties.offset, "properties do not match the entries")
	}
	return nil
}

// AsCorrupt returns the *CorruptionError in err's chain, or nil.
func AsCorrupt(err error) *CorruptionError {
	var c *CorruptionError
	if errors.As(err, &c) {
		return c
	}
	return nil
}
