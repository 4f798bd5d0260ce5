package compact

import (
	"bytes"
	"slices"
	"sort"

	"github.com/pairdb/pairdb/libs/ikey"
)

// stripe returns the number of the stripe of a sequence: how many snapshots do not see it. The
// newest stripe, which only the present sees, is len(snapshots).
func stripe(snapshots []ikey.Seq, seq ikey.Seq) int {
	return sort.Search(len(snapshots), func(i int) bool { return snapshots[i] >= seq })
}

// span is a range of engine keys in which the same range deletes hold.
type span struct {
	start, end []byte
	seqs       []ikey.Seq // newest first; the newest of each stripe
}

// fragment cuts range deletes at each other's bounds. The spans ascend and are disjoint. Of the
// range deletes of one stripe only the newest is kept: it covers all that the others do.
func fragment(deletes []ikey.RangeDelete, snapshots []ikey.Seq) []span {
	if len(deletes) == 0 {
		return nil
	}
	deletes = slices.Clone(deletes)
	slices.SortFunc(deletes, func(a, b ikey.RangeDelete) int { return bytes.Compare(a.Start, b.Start) })
	var bounds [][]byte
	for _, d := range deletes {
		bounds = append(bounds, d.Start, d.End)
	}
	slices.SortFunc(bounds, bytes.Compare)
	bounds = slices.CompactFunc(bounds, bytes.Equal)

	var spans []span
	var active []ikey.RangeDelete // newest first
	for i := 0; i+1 < len(bounds); i++ {
		start := bounds[i]
		active = slices.DeleteFunc(active, func(d ikey.RangeDelete) bool { return bytes.Compare(d.End, start) <= 0 })
		for len(deletes) > 0 && bytes.Equal(deletes[0].Start, start) {
			at, _ := slices.BinarySearchFunc(active, deletes[0].Seq, func(d ikey.RangeDelete, s ikey.Seq) int {
				return -compareSeq(d.Seq, s)
			})
			active = slices.Insert(active, at, deletes[0])
			deletes = deletes[1:]
		}
		if len(active) > 0 {
			spans = append(spans, span{start, bounds[i+1], newestOfStripes(active, snapshots)})
		}
	}
	return spans
}

func compareSeq(a, b ikey.Seq) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func newestOfStripes(active []ikey.RangeDelete, snapshots []ikey.Seq) []ikey.Seq {
	var seqs []ikey.Seq
	last := -1
	for _, d := range active {
		if s := stripe(snapshots, d.Seq); s != last {
			seqs = append(seqs, d.Seq)
			last = s
		}
	}
	return seqs
}

// survivors returns the range deletes that the outputs must have, ascending by start: all but
// those of the oldest stripe where the job is bottommost. In the oldest stripe everything covered
// is dropped by this job, and at the bottom there is nothing else to cover.
func survivors(spans []span, snapshots []ikey.Seq, bottom []Range) []ikey.RangeDelete {
	var out []ikey.RangeDelete
	open := map[ikey.Seq]int{} // the last of out with a sequence, to unite what was cut
	keep := func(start, end []byte, seq ikey.Seq) {
		if i, ok := open[seq]; ok && bytes.Equal(out[i].End, start) {
			out[i].End = end
			return
		}
		open[seq] = len(out)
		out = append(out, ikey.RangeDelete{Start: start, End: end, Seq: seq})
	}
	for _, s := range spans {
		for len(bottom) > 0 && len(bottom[0].End) > 0 && bytes.Compare(bottom[0].End, s.start) <= 0 {
			bottom = bottom[1:]
		}
		for _, seq := range s.seqs {
			if stripe(snapshots, seq) > 0 {
				keep(s.start, s.end, seq)
				continue
			}
			outside(s, bottom, func(start, end []byte) { keep(start, end, seq) })
		}
	}
	return out
}

// outside calls f for the parts of s that are in none of the ranges.
func outside(s span, bottom []Range, f func(start, end []byte)) {
	at := s.start
	for _, b := range bottom {
		if bytes.Compare(b.Start, s.end) >= 0 {
			break
		}
		if bytes.Compare(at, b.Start) < 0 {
			f(at, b.Start)
		}
		if len(b.End) == 0 || bytes.Compare(b.End, s.end) >= 0 {
			return
		}
		at = b.End
	}
	if bytes.Compare(at, s.end) < 0 {
		f(at, s.end)
	}
}

// clip returns the parts of range deletes in [lo, hi); nil bounds are open.
func clip(deletes []ikey.RangeDelete, lo, hi []byte) []ikey.RangeDelete {
	var out []ikey.RangeDelete
	for _, d := range deletes {
		if lo != nil && bytes.Compare(d.Start, lo) < 0 {
			d.Start = lo
		}
		if hi != nil && bytes.Compare(d.End, hi) > 0 {
			d.End = hi
		}
		if bytes.Compare(d.Start, d.End) < 0 {
			out = append(out, d)
		}
	}
	return out
}
