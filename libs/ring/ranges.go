package ring

import (
	"cmp"
	"math"
	"slices"
)

// Sets of tokens are lists of hash ranges. The functions below take any list, whose ranges may overlap,
// touch and wrap, change none, and return the one list of its tokens in normal form: ranges ascend by
// their starts, none touches another, only the last one may wrap, the whole ring is the one range [0, 0),
// and no token at all is nil.

// Normal returns the tokens of a list.
func Normal(a []HashRange) []HashRange { return ranges(spans(a)) }

// Union returns the tokens that are in one of the lists.
func Union(lists ...[]HashRange) []HashRange { return ranges(spans(slices.Concat(lists...))) }

// Intersect returns the tokens that are in both lists.
func Intersect(a, b []HashRange) []HashRange { return ranges(intersect(spans(a), spans(b))) }

// Subtract returns the tokens of a that are not in b.
func Subtract(a, b []HashRange) []HashRange { return ranges(intersect(spans(a), complement(spans(b)))) }

// Overlaps reports whether a token is in both lists.
func Overlaps(a, b []HashRange) bool { return len(intersect(spans(a), spans(b))) > 0 }

// Covers reports whether each token of b is in a.
func Covers(a, b []HashRange) bool { return len(Subtract(b, a)) == 0 }

// In reports whether a token is in a list in normal form.
func In(normal []HashRange, token uint64) bool {
	if len(normal) == 0 {
		return false
	}
	// The last one may wrap, and so contain what is below all the others.
	i, found := slices.BinarySearchFunc(normal, token, func(r HashRange, t uint64) int { return cmp.Compare(r.Start, t) })
	if !found {
		i = (i + len(normal) - 1) % len(normal)
	}
	return normal[i].Contains(token)
}

// RangesIn returns the tokens of placements.
func RangesIn(placements []Placement) []HashRange {
	all := make([]HashRange, len(placements))
	for i, p := range placements {
		all[i] = p.Range
	}
	return Normal(all)
}

// span is a part of the ring that does not wrap, with its last token: that of the ring has no number
// behind it.
type span struct{ first, last uint64 }

// spans returns the tokens of ranges as spans that ascend and don't touch.
func spans(all []HashRange) []span {
	parts := make([]span, 0, len(all)+1)
	for _, r := range all {
		switch {
		case r.Start == r.End:
			parts = append(parts, span{0, math.MaxUint64})
		case r.Start < r.End:
			parts = append(parts, span{r.Start, r.End - 1})
		default:
			parts = append(parts, span{r.Start, math.MaxUint64})
			if r.End > 0 {
				parts = append(parts, span{0, r.End - 1})
			}
		}
	}
	slices.SortFunc(parts, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	out := parts[:0]
	for _, p := range parts {
		if n := len(out); n > 0 && (out[n-1].last == math.MaxUint64 || p.first <= out[n-1].last+1) {
			out[n-1].last = max(out[n-1].last, p.last)
			continue
		}
		out = append(out, p)
	}
	return out
}

// ranges returns spans that ascend and don't touch in normal form.
func ranges(all []span) []HashRange {
	n := len(all)
	if n == 0 {
		return nil
	}
	out := make([]HashRange, n)
	for i, s := range all {
		out[i] = HashRange{s.first, s.last + 1} // 0 behind the last token of the ring
	}
	if n > 1 && all[0].first == 0 && all[n-1].last == math.MaxUint64 {
		out[n-1].End = out[0].End
		out = out[1:]
	}
	return out
}

// intersect returns what is in both; both ascend and don't touch, and so does the result.
func intersect(a, b []span) (out []span) {
	for i, j := 0, 0; i < len(a) && j < len(b); {
		if s := (span{max(a[i].first, b[j].first), min(a[i].last, b[j].last)}); s.first <= s.last {
			out = append(out, s)
		}
		if a[i].last < b[j].last {
			i++
		} else {
			j++
		}
	}
	return out
}

// complement returns what is not in spans that ascend and don't touch.
func complement(all []span) (out []span) {
	next := uint64(0)
	for _, s := range all {
		if s.first > next {
			out = append(out, span{next, s.first - 1})
		}
		if s.last == math.MaxUint64 {
			return out
		}
		next = s.last + 1
	}
	return append(out, span{next, math.MaxUint64})
}

// Within returns the parts of all placements that are in a list of ranges, in ring order: neighbours
// may have the same replicas.
func (r *Ring) Within(list []HashRange) (out []Placement) {
	wanted := spans(list)
	// Placements follow one another, the first one perhaps from before 0 on.
	at, i := slices.Clone(r.placements), 0
	if n := len(at); n > 0 && (at[0].Range.Start >= at[0].Range.End) {
		at = append(at, Placement{Range: HashRange{at[0].Range.Start, 0}, Replicas: at[0].Replicas})
		at[0].Range.Start = 0
		if n == 1 {
			at = []Placement{{Replicas: at[0].Replicas}}
		}
	}
	for _, w := range wanted {
		for i < len(at) && at[i].Range.End != 0 && at[i].Range.End-1 < w.first {
			i++
		}
		for j := i; j < len(at); j++ {
			// The last token of a placement is the one before its end, which is 0 behind the whole ring.
			s := span{max(w.first, at[j].Range.Start), min(w.last, at[j].Range.End-1)}
			if s.first > s.last {
				break
			}
			out = append(out, Placement{Range: HashRange{s.first, s.last + 1}, Replicas: at[j].Replicas})
		}
	}
	last := len(out) - 1
	if last > 0 && out[0].Range.Start == 0 && out[last].Range.End == 0 && slices.Equal(out[0].Replicas, out[last].Replicas) {
		out[last].Range.End = out[0].Range.End
		out = out[1:]
	}
	return out
}
