package engine

import (
	"bytes"
	"container/heap"
	"slices"
	"sort"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
)

// span is a piece of the key space over which the newest range delete is the same.
type span struct {
	start, end []byte
	seq        ikey.Seq
}

// rangeMask answers which range delete is the newest one over a key, out of a fixed set: disjoint
// spans in key order (the skyline of the deletes).
type rangeMask struct {
	spans []span
	last  int // where the previous search ended: walks ask for neighbours
}

// newRangeMask builds the skyline of dels, leaving out those above at. It keeps the keys of dels.
func newRangeMask(dels []ikey.RangeDelete, at ikey.Seq) rangeMask {
	use := make([]ikey.RangeDelete, 0, len(dels))
	edges := make([][]byte, 0, 2*len(dels))
	for _, d := range dels {
		if d.Seq <= at && bytes.Compare(d.Start, d.End) < 0 {
			use = append(use, d)
			edges = append(edges, d.Start, d.End)
		}
	}
	slices.SortFunc(use, func(a, b ikey.RangeDelete) int { return bytes.Compare(a.Start, b.Start) })
	slices.SortFunc(edges, bytes.Compare)
	edges = slices.CompactFunc(edges, bytes.Equal)

	var m rangeMask
	var open newestOpen
	for i := 0; i+1 < len(edges); i++ {
		for len(use) > 0 && bytes.Compare(use[0].Start, edges[i]) <= 0 {
			heap.Push(&open, use[0])
			use = use[1:]
		}
		for len(open) > 0 && bytes.Compare(open[0].End, edges[i]) <= 0 {
			heap.Pop(&open)
		}
		if len(open) == 0 {
			continue
		}
		if n := len(m.spans); n > 0 && m.spans[n-1].seq == open[0].Seq && bytes.Equal(m.spans[n-1].end, edges[i]) {
			m.spans[n-1].end = edges[i+1]
			continue
		}
		m.spans = append(m.spans, span{start: edges[i], end: edges[i+1], seq: open[0].Seq})
	}
	return m
}

// newestOpen is a heap of range deletes, newest on top.
type newestOpen []ikey.RangeDelete

func (h newestOpen) Len() int           { return len(h) }
func (h newestOpen) Less(i, j int) bool { return h[i].Seq > h[j].Seq }
func (h newestOpen) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *newestOpen) Push(x any)        { *h = append(*h, x.(ikey.RangeDelete)) }
func (h *newestOpen) Pop() any {
	old := *h
	d := old[len(old)-1]
	*h = old[:len(old)-1]
	return d
}

// find returns the index of the first span that ends after user.
func (m *rangeMask) find(user []byte) int {
	return sort.Search(len(m.spans), func(i int) bool { return bytes.Compare(m.spans[i].end, user) > 0 })
}

// at returns the sequence of the newest range delete over user, 0 for none. It remembers its place:
// one goroutine at a time.
func (m *rangeMask) at(user []byte) ikey.Seq {
	if len(m.spans) == 0 {
		return 0
	}
	if m.last < len(m.spans) {
		s := &m.spans[m.last]
		if bytes.Compare(user, s.end) < 0 {
			if bytes.Compare(s.start, user) <= 0 {
				return s.seq
			}
			if m.last == 0 || bytes.Compare(m.spans[m.last-1].end, user) <= 0 {
				return 0
			}
		}
	}
	m.last = m.find(user)
	if m.last < len(m.spans) && bytes.Compare(m.spans[m.last].start, user) <= 0 {
		return m.spans[m.last].seq
	}
	return 0
}

// hides reports whether every entry in [smallest, largest] with a sequence up to maxSeq is removed:
// one span reaches over all of it and is newer.
func (m *rangeMask) hides(smallest, largest ikey.Key, maxSeq ikey.Seq) bool {
	i := m.find(smallest.User)
	if i == len(m.spans) {
		return false
	}
	s := &m.spans[i]
	if s.seq <= maxSeq || bytes.Compare(s.start, smallest.User) > 0 {
		return false
	}
	c := bytes.Compare(largest.User, s.end)
	return c < 0 || c == 0 && sstable.IsExclusive(largest)
}

// rangeIndex answers point questions over a fixed set of range deletes from many goroutines.
type rangeIndex struct {
	dels   []ikey.RangeDelete
	newest ikey.Seq
	mask   rangeMask // of all of dels; never moved: only find is used
}

func newRangeIndex(dels []ikey.RangeDelete) *rangeIndex {
	x := &rangeIndex{dels: dels}
	for _, d := range dels {
		x.newest = max(x.newest, d.Seq)
	}
	x.mask = newRangeMask(dels, ikey.MaxSeq)
	return x
}

// covering returns the largest sequence <= at of a range delete that spans user, 0 for none.
func (x *rangeIndex) covering(user []byte, at ikey.Seq) ikey.Seq {
	if len(x.dels) == 0 {
		return 0
	}
	if at < x.newest {
		return coveringLinear(x.dels, user, at) // an old snapshot: rare
	}
	i := x.mask.find(user)
	if i < len(x.mask.spans) && bytes.Compare(x.mask.spans[i].start, user) <= 0 {
		return x.mask.spans[i].seq
	}
	return 0
}

func coveringLinear(dels []ikey.RangeDelete, user []byte, at ikey.Seq) ikey.Seq {
	var seq ikey.Seq
	for i := range dels {
		d := &dels[i]
		if d.Seq > seq && d.Seq <= at && bytes.Compare(d.Start, user) <= 0 && bytes.Compare(user, d.End) < 0 {
			seq = d.Seq
		}
	}
	return seq
}
