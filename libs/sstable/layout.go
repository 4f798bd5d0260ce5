package sstable

// Layout says how a table is built, for tools.
type Layout struct {
	// FormatVersion of the file.
	FormatVersion int
	// DataBlocks, IndexLevels (1 or 2) and Partitions (blocks of the lower level; 0 with one level).
	DataBlocks, IndexLevels, Partitions uint64
	// FilterKeys are in the filter, with about FilterBitsPerKey each.
	FilterKeys, FilterBitsPerKey uint64
	// BlockBytes and Compression the writer aimed at.
	BlockBytes  uint64
	Compression Compression
	// Parts are the pieces of the file in their order; they fill it.
	Parts []Part
}

// Part is a piece of a file, with its checksums.
type Part struct {
	Name          string
	Offset, Bytes uint64
}

// HasMagic reports whether b, the start of a file, is that of a table.
func HasMagic(b []byte) bool { return len(b) >= len(magic) && string(b[:len(magic)]) == magic }

// Layout returns what footer and properties say.
func (r *Reader) Layout() Layout {
	p, f := &r.props, &r.foot
	l := Layout{
		FormatVersion: FormatVersion, DataBlocks: p.dataBlocks, IndexLevels: uint64(f.levels), Partitions: p.partitions,
		FilterKeys: p.filterKeys, FilterBitsPerKey: p.filterBits, BlockBytes: p.blockBytes, Compression: Compression(p.packing),
	}
	add := func(name string, from, to uint64) {
		if to > from {
			l.Parts = append(l.Parts, Part{Name: name, Offset: from, Bytes: to - from})
		}
	}
	add("header", 0, headerBytes)
	add("data", headerBytes, f.dataEnd)
	add("hash index", f.dataEnd, f.behindData())
	first := f.index.offset
	for _, h := range []handle{f.ranges, f.filter} {
		if h != (handle{}) {
			first = h.offset
		}
	}
	add("index partitions", f.behindData(), first)
	for _, h := range []struct {
		name string
		at   handle
	}{{"filter", f.filter}, {"range deletes", f.ranges}, {"index", f.index}, {"properties", f.properties}} {
		if h.at != (handle{}) {
			add(h.name, h.at.offset, h.at.end())
		}
	}
	add("footer", f.size-footerBytes, f.size)
	return l
}
