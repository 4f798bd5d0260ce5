package cache

import (
	"bytes"

	"github.com/pairdb/pairdb/libs/ikey"
)

// maxRanges bounds what a row that was not read for long is compared with. When there are more, the
// oldest counts for all keys.
const maxRanges = 64

// rangeSet is the last ranges that were invalidated; immutable. Each range makes a new generation.
type rangeSet struct {
	generation uint64
	list       []rowRange // ascending by generation

	// What fell off the list: rows that were last compared before floorGeneration and are older
	// than floorSeq count as hit.
	floorGeneration uint64
	floorSeq        ikey.Seq
}

type rowRange struct {
	start, end []byte
	seq        ikey.Seq
	generation uint64
}

// with returns a set with one more range.
func (s *rangeSet) with(start, end []byte, seq ikey.Seq) *rangeSet {
	n := &rangeSet{generation: s.generation + 1, floorGeneration: s.floorGeneration, floorSeq: s.floorSeq}
	n.list = make([]rowRange, 0, len(s.list)+1)
	n.list = append(append(n.list, s.list...),
		rowRange{start: bytes.Clone(start), end: bytes.Clone(end), seq: seq, generation: n.generation})
	if len(n.list) > maxRanges {
		n.floorGeneration, n.floorSeq = n.list[0].generation, max(n.floorSeq, n.list[0].seq)
		n.list = n.list[1:]
	}
	return n
}

// hit reports whether a range that came after generation has changed the state that key had at seq.
func (s *rangeSet) hit(key []byte, seq ikey.Seq, generation uint64) bool {
	if generation < s.floorGeneration && seq < s.floorSeq {
		return true
	}
	for i := len(s.list) - 1; i >= 0 && s.list[i].generation > generation; i-- {
		r := &s.list[i]
		if seq < r.seq && bytes.Compare(r.start, key) <= 0 && (r.end == nil || bytes.Compare(key, r.end) < 0) {
			return true
		}
	}
	return false
}
