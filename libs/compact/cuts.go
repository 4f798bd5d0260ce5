package compact

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
)

// MaxHashCuts bounds each list of cuts of a job: a node of a cluster of 100, with 150 places each and
// three replicas, shares about 1,350 ranges.
const MaxHashCuts = 1 << 14

// HashCut says up to which sequence the entries of keys count whose tokens are in a range.
type HashCut struct {
	Range ring.HashRange
	Seq   ikey.Seq
}

// UniteCuts returns cuts as a job wants them: ascending and disjoint, none of them wrapping (a range that
// ends at 0 goes up to the last token), neighbours that touch and have the same sequence united. Where
// cuts overlap the smallest sequence counts, so that nothing goes too early. cuts stays as it is.
func UniteCuts(cuts []HashCut) []HashCut {
	// A sweep over the borders: at each the cuts that are open there are known by their sequences.
	type border struct {
		at   uint64
		open bool
		seq  ikey.Seq
	}
	var borders []border
	add := func(start, end uint64, seq ikey.Seq) {
		borders = append(borders, border{start, true, seq})
		if end != 0 {
			borders = append(borders, border{end, false, seq})
		}
	}
	for _, c := range cuts {
		switch r := c.Range; {
		case r.Start == r.End:
			add(0, 0, c.Seq)
		case r.Start < r.End || r.End == 0:
			add(r.Start, r.End, c.Seq)
		default:
			add(r.Start, 0, c.Seq)
			add(0, r.End, c.Seq)
		}
	}
	slices.SortFunc(borders, func(a, b border) int { return cmp.Compare(a.at, b.at) })
	var out []HashCut
	var open seqs
	for i := 0; i < len(borders); {
		at := borders[i].at
		for ; i < len(borders) && borders[i].at == at; i++ {
			open.change(borders[i].seq, borders[i].open)
		}
		seq, ok := open.least()
		if last := len(out) - 1; last >= 0 && out[last].Range.End == 0 {
			if ok && out[last].Seq == seq {
				continue // the last one goes on
			}
			out[last].Range.End = at
		}
		if ok {
			out = append(out, HashCut{ring.HashRange{Start: at, End: 0}, seq})
		}
	}
	return out
}

// seqs counts the sequences that are open, ascending. There are few at a time.
type seqs []struct {
	seq ikey.Seq
	n   int
}

func (s *seqs) change(seq ikey.Seq, open bool) {
	i := 0
	for i < len(*s) && (*s)[i].seq < seq {
		i++
	}
	if i == len(*s) || (*s)[i].seq != seq {
		*s = slices.Insert(*s, i, struct {
			seq ikey.Seq
			n   int
		}{seq, 0})
	}
	if open {
		(*s)[i].n++
	} else {
		(*s)[i].n--
	}
	if (*s)[i].n == 0 {
		*s = slices.Delete(*s, i, i+1)
	}
}

func (s seqs) least() (ikey.Seq, bool) {
	if len(s) == 0 {
		return 0, false
	}
	return s[0].seq, true
}

// LimitCuts returns at most n of united cuts: neighbours that touch are united under the smaller sequence,
// those with the nearest sequences first in each step; if that is not enough, the last ones are left out.
func LimitCuts(cuts []HashCut, n int) []HashCut {
	for len(cuts) > n {
		// Each step unites every pair with a difference of at most the median of all: half of them.
		var gaps []ikey.Seq
		for i := 1; i < len(cuts); i++ {
			if cuts[i-1].Range.End == cuts[i].Range.Start {
				gaps = append(gaps, max(cuts[i-1].Seq, cuts[i].Seq)-min(cuts[i-1].Seq, cuts[i].Seq))
			}
		}
		if len(gaps) == 0 {
			return cuts[:n:n]
		}
		slices.Sort(gaps)
		within := gaps[len(gaps)/2]
		out := []HashCut{cuts[0]}
		for i := 1; i < len(cuts); i++ {
			c, last := cuts[i], &out[len(out)-1]
			diff := max(cuts[i-1].Seq, c.Seq) - min(cuts[i-1].Seq, c.Seq)
			if last.Range.End == c.Range.Start && diff <= within {
				last.Range.End, last.Seq = c.Range.End, min(last.Seq, c.Seq)
				continue
			}
			out = append(out, c)
		}
		cuts = out
	}
	return cuts
}

// CutOf returns the cut of a token in united cuts; ok is false if it has none.
func CutOf(cuts []HashCut, token uint64) (seq ikey.Seq, ok bool) {
	i, found := slices.BinarySearchFunc(cuts, token, func(c HashCut, t uint64) int { return cmp.Compare(c.Range.Start, t) })
	if !found {
		i--
	}
	if i < 0 || cuts[i].Range.End != 0 && token >= cuts[i].Range.End {
		return 0, false
	}
	return cuts[i].Seq, true
}

// CheckCuts says what is wrong with cuts that are not as UniteCuts returns them, but for neighbours that
// could be one, or with too many.
func CheckCuts(cuts []HashCut) error {
	if len(cuts) > MaxHashCuts {
		return fmt.Errorf("%d ranges, at most %d", len(cuts), MaxHashCuts)
	}
	for i, c := range cuts {
		switch {
		case c.Seq > ikey.MaxSeq:
			return fmt.Errorf("sequence %d", c.Seq)
		case c.Range.End != 0 && c.Range.Start >= c.Range.End:
			return fmt.Errorf("range [%016x, %016x)", c.Range.Start, c.Range.End)
		case i > 0 && (cuts[i-1].Range.End == 0 || cuts[i-1].Range.End > c.Range.Start):
			return fmt.Errorf("range [%016x, %016x) begins before the end of the one before it", c.Range.Start, c.Range.End)
		}
	}
	return nil
}

// TokenOf returns the token of an engine key; ok is false if it does not stand on the ring: the tenants
// whose names begin with an underscore are the node's own.
func TokenOf(user []byte) (token uint64, ok bool) {
	tenant, key, err := ikey.SplitEngineKey(user)
	if err != nil || len(tenant) == 0 || tenant[0] == '_' {
		return 0, false
	}
	var scratch [128]byte // most pairs
	return ring.TokenOf(scratch[:0], tenant, key), true
}
