package inspect

import (
	"errors"
	"fmt"
	"io"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
)

// table dumps a table: properties, parts, range deletes, entries.
func (d *dumper) table(name, show string) (err error) {
	f, err := d.fs.Open(name)
	if err != nil {
		return err
	}
	r, err := sstable.Open(f, sstable.ReaderOptions{Name: show}) // closes f
	if err != nil {
		d.finding(describe(show, err))
		return nil
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	d.print(newTable(show, r))
	for _, rd := range r.RangeDeletes() {
		d.print(newEntry("range-delete", show, ikey.Make(rd.Start, rd.Seq, ikey.KindRangeDelete), rd.End, false))
	}
	it := r.NewScan(sstable.ScanOptions{DropBehind: true, OnRead: func(int) error { return d.ctx.Err() }})
	for ok := it.First(); ok && d.err == nil; ok = it.Next() {
		value := it.Value()
		if !it.Valid() {
			break
		}
		d.entry(newEntry("entry", show, it.Key(), value, d.o.Values), engine.NoOffset)
	}
	err = it.Close()
	if err != nil && d.ctx.Err() == nil {
		d.finding(describe(show, err))
		return nil
	}
	return err
}

// table is what a table says of itself.
type table struct {
	Type              string `json:"type"`
	File              string `json:"file"`
	FormatVersion     int    `json:"format_version"`
	Bytes             uint64 `json:"bytes"`
	Digest            string `json:"digest"`
	Smallest          string `json:"smallest"`
	Largest           string `json:"largest"`
	MinSequence       uint64 `json:"min_sequence"`
	MaxSequence       uint64 `json:"max_sequence"`
	Entries           uint64 `json:"entries"`
	Sets              uint64 `json:"sets"`
	Merges            uint64 `json:"merges"`
	Deletes           uint64 `json:"deletes"`
	RangeDeletes      uint64 `json:"range_deletes"`
	Tombstones        uint64 `json:"tombstones"`
	OldestCollectible uint64 `json:"oldest_collectible,string,omitempty"`
	RawKeyBytes       uint64 `json:"raw_key_bytes"`
	RawValueBytes     uint64 `json:"raw_value_bytes"`
	Compression       string `json:"compression"`
	BlockBytes        uint64 `json:"block_bytes"`
	DataBlocks        uint64 `json:"data_blocks"`
	IndexLevels       uint64 `json:"index_levels"`
	IndexPartitions   uint64 `json:"index_partitions"`
	FilterKeys        uint64 `json:"filter_keys"`
	FilterBitsPerKey  uint64 `json:"filter_bits_per_key"`
	Parts             []part `json:"parts"`
}

// part is a piece of the file.
type part struct {
	Name   string `json:"name"`
	Offset uint64 `json:"offset"`
	Bytes  uint64 `json:"bytes"`
}

func newTable(show string, r *sstable.Reader) table {
	m, l := r.Meta(), r.Layout()
	t := table{
		Type: "table", File: show, FormatVersion: l.FormatVersion, Bytes: m.Size, Digest: digest(m.Digest),
		Smallest: m.Smallest.String(), Largest: m.Largest.String(), MinSequence: uint64(m.MinSeq), MaxSequence: uint64(m.MaxSeq),
		Entries: m.Entries, Sets: m.Sets, Merges: m.Merges, Deletes: m.Deletes, RangeDeletes: m.RangeDeletes,
		Tombstones: m.Tombstones, OldestCollectible: m.OldestCollectible, RawKeyBytes: m.RawKeyBytes, RawValueBytes: m.RawValueBytes,
		Compression: l.Compression.String(), BlockBytes: l.BlockBytes, DataBlocks: l.DataBlocks, IndexLevels: l.IndexLevels,
		IndexPartitions: l.Partitions, FilterKeys: l.FilterKeys, FilterBitsPerKey: l.FilterBitsPerKey,
	}
	for _, p := range l.Parts {
		t.Parts = append(t.Parts, part(p))
	}
	return t
}

func (t table) text(w io.Writer) {
	fmt.Fprintf(w, "%s: table of %d bytes, digest %s, format %d\n", t.File, t.Bytes, t.Digest, t.FormatVersion)
	fmt.Fprintf(w, "  keys [%s - %s], sequences %d-%d\n", t.Smallest, t.Largest, t.MinSequence, t.MaxSequence)
	fmt.Fprintf(w, "  %d entries: %d sets, %d merges, %d deletes; %d range deletes; %d tombstones or expiries",
		t.Entries, t.Sets, t.Merges, t.Deletes, t.RangeDeletes, t.Tombstones)
	if t.OldestCollectible != 0 {
		fmt.Fprintf(w, ", the oldest %s", wallTime(t.OldestCollectible))
	}
	fmt.Fprintf(w, "\n  %d bytes of keys, %d of values; compression %s, blocks of %d bytes\n", t.RawKeyBytes, t.RawValueBytes, t.Compression, t.BlockBytes)
	fmt.Fprintf(w, "  index: %d data blocks, %d levels, %d partitions; filter: %d keys, %d bits a key\n",
		t.DataBlocks, t.IndexLevels, t.IndexPartitions, t.FilterKeys, t.FilterBitsPerKey)
	for _, p := range t.Parts {
		fmt.Fprintf(w, "  @%d %s, %d bytes\n", p.Offset, p.Name, p.Bytes)
	}
}
