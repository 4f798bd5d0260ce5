package engine

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

func tbl(num uint64, lo, hi string, minSeq, maxSeq ikey.Seq, merges uint64) *manifest.Table {
	return &manifest.Table{Num: num, Origin: manifest.OriginFlush, Meta: sstable.Meta{Size: 100, MinSeq: minSeq, MaxSeq: maxSeq,
		Merges: merges, Entries: 1, Smallest: ikey.Make([]byte(lo), maxSeq, ikey.KindSet), Largest: ikey.Make([]byte(hi), minSeq, ikey.KindSet)}}
}

func printRanges(rs []compact.Range) string {
	var parts []string
	for _, r := range rs {
		parts = append(parts, fmt.Sprintf("[%q,%q)", r.Start, r.End))
	}
	return strings.Join(parts, " ")
}

func TestBottommostExcludesWhateverMayHoldSomethingOlderOrAFragment(t *testing.T) {
	// A range that is called bottommost too generously lets a compaction drop a tombstone whose
	// prey is still somewhere: deleted data comes back.
	job := []*manifest.Table{tbl(1, "c", "k", 10, 20, 0), tbl(2, "f", "p", 1, 9, 0)}
	for _, tc := range []struct {
		name   string
		others map[int][]*manifest.Table
		merges []manifest.Span
		want   string
	}{
		{name: "nothing else", want: `["c","p\x00")`},
		{name: "older table below", others: map[int][]*manifest.Table{4: {tbl(3, "e", "g", 1, 1, 0)}}, want: `["c","e") ["g\x00","p\x00")`},
		{name: "table below, outside", others: map[int][]*manifest.Table{4: {tbl(3, "q", "z", 1, 1, 0)}}, want: `["c","p\x00")`},
		{name: "sets above do not block", others: map[int][]*manifest.Table{1: {tbl(3, "e", "g", 30, 31, 0)}}, want: `["c","p\x00")`},
		{name: "fragments above block", others: map[int][]*manifest.Table{1: {tbl(3, "e", "g", 30, 31, 1)}}, want: `["c","e") ["g\x00","p\x00")`},
		{name: "newer level 0 of sets does not block", others: map[int][]*manifest.Table{0: {tbl(3, "a", "z", 30, 31, 0)}}, want: `["c","p\x00")`},
		{name: "level 0 that may be older blocks", others: map[int][]*manifest.Table{0: {tbl(3, "a", "z", 15, 31, 0)}}, want: ``},
		{name: "fragments in a memtable block", merges: []manifest.Span{{Start: []byte("d"), End: []byte("d")}}, want: `["c","d") ["d\x00","p\x00")`},
		{name: "overlapping blockers", others: map[int][]*manifest.Table{5: {tbl(3, "d", "h", 1, 1, 0), tbl(4, "i", "zz", 1, 1, 0)}}, merges: []manifest.Span{{Start: []byte("a"), End: []byte("e")}}, want: `["h\x00","i")`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			levels := [manifest.NumLevels][]*manifest.Table{2: {job[0]}, 3: {job[1]}}
			for level, tables := range tc.others {
				levels[level] = append(levels[level], tables...)
			}
			require.Equal(t, tc.want, printRanges(bottommostRanges(manifest.NewVersion(levels), job, 3, tc.merges)))
		})
	}
}

func TestQuarantinedTableBlocksCollection(t *testing.T) {
	// Nobody knows what a damaged table holds: its older values must stay covered.
	job := []*manifest.Table{tbl(1, "c", "k", 10, 20, 0)}
	bad := tbl(2, "e", "f", 30, 31, 0)
	bad.Quarantined = true
	v := manifest.NewVersion([manifest.NumLevels][]*manifest.Table{1: {bad}, 3: {job[0]}})
	require.Equal(t, `["c","e") ["f\x00","k\x00")`, printRanges(bottommostRanges(v, job, 3, nil)))
}
