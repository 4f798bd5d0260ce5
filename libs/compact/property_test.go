package compact

import (
	"context"
	"slices"
	"sort"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
)

// reading is what a reader at a sequence gets for a key: the plain definition that merges must not
// change. complete says that the reader needs nothing below these tables.
func reading(tables []table, user string, at ikey.Seq) (r causal.Record, complete bool) {
	var points []entry
	var deleted ikey.Seq
	for _, tab := range tables {
		for _, e := range tab.entries {
			switch {
			case e.k.Seq() > at:
			case e.end != "":
				if string(e.k.User) <= user && user < e.end {
					deleted = max(deleted, e.k.Seq())
				}
			case string(e.k.User) == user:
				points = append(points, e)
			}
		}
	}
	sort.Slice(points, func(i, j int) bool { return points[i].k.Trailer > points[j].k.Trailer })
	for _, e := range points {
		if e.k.Seq() < deleted || e.k.Kind() == ikey.KindDelete {
			return r, true
		}
		part, err := causal.Decode(e.value)
		if err != nil {
			panic(err)
		}
		r = causal.Join(r, part)
		if e.k.Kind() == ikey.KindSet {
			return r, true
		}
	}
	return r, deleted > 0
}

var propertyUsers = []string{"a", "b", "c", "d", "e", "f"}

// genTables draws tables like those of a tree: one history of writes with rising sequences, cut
// into runs of which the older ones are deeper.
func genTables(t *rapid.T) []table {
	seq, counter := uint64(0), uint64(0)
	var tables []table
	for level := rapid.IntRange(1, 4).Draw(t, "levels"); level >= 0; level-- {
		var es []entry
		for range rapid.IntRange(0, 12).Draw(t, "writes") {
			seq++
			es = append(es, genEntry(t, ikey.Seq(seq), &counter))
		}
		if len(es) == 0 {
			continue
		}
		if level > 1 && rapid.Bool().Draw(t, "split") {
			// Two disjoint tables of one level.
			lower := slices.DeleteFunc(slices.Clone(es), func(e entry) bool { return string(e.k.User) >= "c" || e.end > "c" })
			upper := slices.DeleteFunc(slices.Clone(es), func(e entry) bool { return string(e.k.User) < "c" })
			for _, half := range [][]entry{lower, upper} {
				if len(half) > 0 {
					tables = append(tables, table{level, half})
				}
			}
			continue
		}
		tables = append(tables, table{level, es})
	}
	return tables
}

func genEntry(t *rapid.T, seq ikey.Seq, counter *uint64) entry {
	user := rapid.SampledFrom(propertyUsers).Draw(t, "user")
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0:
		return entry{k: ikey.Make([]byte(user), seq, ikey.KindDelete)}
	case 1:
		end := rapid.SampledFrom([]string{"c", "e", "g"}).Draw(t, "end")
		return entry{k: ikey.Make([]byte(min(user, "b")), seq, ikey.KindRangeDelete), end: end}
	case 2, 3, 4, 5:
		return entry{k: ikey.Make([]byte(user), seq, ikey.KindMerge), value: genRecord(t, counter).Encode(nil)}
	}
	return entry{k: ikey.Make([]byte(user), seq, ikey.KindSet), value: genRecord(t, counter).Encode(nil)}
}

func genRecord(t *rapid.T, counter *uint64) causal.Record {
	*counter++
	s := causal.Sibling{Dot: causal.Dot{Node: rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "node"), Counter: *counter},
		Timestamp: rapid.Uint64Range(1, 20).Draw(t, "ts")}
	if *counter > 1 && rapid.Bool().Draw(t, "informed") {
		s.Clock = causal.Clock{{Node: "n1", Counter: rapid.Uint64Range(1, *counter-1).Draw(t, "seen")}}
	}
	if rapid.IntRange(0, 3).Draw(t, "tombstone") == 0 {
		s.Tombstone = true
	} else {
		s.Value = []byte(rapid.StringMatching(`[x-z]{1,3}`).Draw(t, "value"))
	}
	r, err := causal.NewRecord([]causal.Sibling{s})
	if err != nil {
		panic(err)
	}
	return r
}

// A merge that changes what a snapshot or the present reads has lost a write or brought one back.
func TestMergeChangesNoReading(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tables := genTables(t)
		w := newWorld()
		// None and None, from 1 byte on: values are copied as they are stored.
		w.compression = rapid.SampledFrom([]sstable.Compression{sstable.None, sstable.S2}).Draw(t, "packed inputs")
		w.valueBlockBytes = rapid.SampledFrom([]int{0, 1, 40}).Draw(t, "value blocks of inputs")
		job := Job{ID: 1, Kind: Merge, MaxOutputs: rapid.IntRange(1, 5).Draw(t, "max"), OutputLevel: 6,
			Table: TableOptions{TargetBytes: int64(rapid.SampledFrom([]int{0, 1, 600}).Draw(t, "target")), FilterBits: 10,
				ValueBlockBytes: rapid.SampledFrom([]int{0, 1, 30}).Draw(t, "value blocks"),
				Compression:     rapid.SampledFrom([]sstable.Compression{sstable.None, sstable.S2, sstable.Zstd}).Draw(t, "compression")}}
		in := uint64(0)
		for i, tab := range tables {
			job.Inputs = append(job.Inputs, w.input(t, uint64(i+1), tab))
			in += uint64(len(slices.DeleteFunc(slices.Clone(tab.entries), func(e entry) bool { return e.end != "" })))
		}
		job.Snapshots = slices.Compact(slices.Sorted(slices.Values(rapid.SliceOfN(
			rapid.Custom(func(t *rapid.T) ikey.Seq { return ikey.Seq(rapid.IntRange(1, 50).Draw(t, "snapshot")) }), 0, 3).Draw(t, "snapshots"))))
		bottom := rapid.IntRange(0, 2).Draw(t, "bottom")
		switch bottom {
		case 1:
			job.Bottommost = []Range{{}}
		case 2:
			job.Bottommost = []Range{{[]byte("b"), []byte("c")}, {[]byte("d"), nil}}
		}
		if rapid.Bool().Draw(t, "collect") {
			job.GCBefore = rapid.Uint64Range(1, 20).Draw(t, "gc")
		}

		outs, stats, corrupt, err := Run(context.Background(), job, w.env)
		require.NoError(t, err)
		require.Empty(t, corrupt)
		require.Equal(t, in, stats.EntriesIn)
		require.Equal(t, stats.EntriesIn, stats.Accounted())
		require.Zero(t, stats.Dropped+stats.DropLeft)
		require.LessOrEqual(t, len(outs), job.MaxOutputs)

		var after []table
		out := uint64(0)
		for i, o := range outs {
			require.Equal(t, i+1, o.Index)
			if i > 0 {
				require.True(t, follows(outs[i-1].Meta, o.Meta), "outputs overlap")
			}
			after = append(after, w.read(t, OutputName(o.Index), 6))
			out += o.Entries
		}
		require.Equal(t, stats.EntriesOut, out)
		for _, user := range propertyUsers {
			isBottom := bottom == 1 || bottom == 2 && (user == "b" || user >= "d")
			compareReadings(t, tables, after, user, isBottom, job)
		}
	})
}

func compareReadings(t *rapid.T, before, after []table, user string, bottom bool, job Job) {
	for i, at := range append(slices.Clone(job.Snapshots), ikey.MaxSeq) {
		want, complete := reading(before, user, at)
		got, gotComplete := reading(after, user, at)
		if bottom {
			// Nothing exists below: complete or not reads the same.
			complete, gotComplete = true, true
		}
		require.Equal(t, complete, gotComplete, "%s at %d: what is below would be read or hidden", user, at)
		if i == len(job.Snapshots) && bottom {
			// The present may have lost what is collectable, and nothing else; collection never
			// leaves a thing that the cut takes when the key has no older versions.
			want, _ = causal.Collect(want, job.GCBefore)
			got, _ = causal.Collect(got, job.GCBefore)
		}
		require.Equal(t, want.Encode(nil), got.Encode(nil), "%s at %d", user, at)
	}
	if !bottom || len(job.Snapshots) > 0 {
		return
	}
	for _, tab := range after {
		for _, e := range tab.entries {
			if string(e.k.User) != user {
				continue
			}
			require.Equal(t, ikey.KindSet, e.k.Kind(), "at the bottom nothing but sets")
			at, ok := causal.Inspect(e.value)
			require.False(t, ok && at < job.GCBefore, "collectable and kept")
		}
	}
}

// Merging what was merged must be harmless: an attempt is repeated after every crash.
func TestMergeIsDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tables := genTables(t)
		var digests [2][]uint64
		for i := range digests {
			w := newWorld()
			job := Job{Kind: Merge, MaxOutputs: 3, Table: TableOptions{TargetBytes: 1}}
			for j, tab := range tables {
				job.Inputs = append(job.Inputs, w.input(t, uint64(j+1), tab))
			}
			outs, _, _, err := Run(context.Background(), job, w.env)
			require.NoError(t, err)
			for _, o := range outs {
				digests[i] = append(digests[i], o.Digest)
			}
		}
		require.Equal(t, digests[0], digests[1])
	})
}
