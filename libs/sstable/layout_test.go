package sstable

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
)

// Danger: a tool names the wrong part for a damaged offset.
func TestPartsOfTheLayoutFillTheFile(t *testing.T) {
	for _, o := range []WriterOptions{{}, {BlockBytes: 256, IndexPartitionBytes: 256, FilterBitsPerKey: 10}} {
		var entries []entry
		for i := range 500 {
			entries = append(entries, entry{ikey.Make(fmt.Appendf(nil, "t\x00%06d", i), 1, ikey.KindSet), "value"})
		}
		fs, m := build(t, o, entries, []ikey.RangeDelete{{Start: []byte("t\x00a"), End: []byte("t\x00b"), Seq: 7}})
		r := reopen(t, fs, ReaderOptions{})
		l := r.Layout()
		at := uint64(0)
		for _, p := range l.Parts {
			require.Equal(t, at, p.Offset, p.Name)
			at += p.Bytes
		}
		require.Equal(t, m.Size, at)
		require.Equal(t, o.IndexPartitionBytes > 0, l.Partitions > 0)
		require.Positive(t, l.DataBlocks)
		require.True(t, HasMagic(contents(t, fs)))
		require.NoError(t, r.Close())
	}
}
