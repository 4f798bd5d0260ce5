package antientropy

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
)

// maxFacts bounds the facts of a peer: as many as a job has cuts.
const maxFacts = compact.MaxHashCuts

// fact says that what this node had of a range up to a sequence, the peer has since a time.
type fact struct {
	ring.HashRange // does not wrap; End 0 is behind the last token
	seq            ikey.Seq
	at             int64 // Unix milliseconds
}

// facts are those of one peer: ascending, disjoint.
type facts []fact

// parts returns ranges as ones that do not wrap, ascending, those that touch united.
func parts(ranges []ring.HashRange) (out []ring.HashRange) {
	for _, r := range ring.Normal(ranges) {
		switch {
		case r.Start == r.End:
			return []ring.HashRange{{}}
		case r.Start < r.End || r.End == 0:
			out = append(out, r)
		default:
			out = append(out, ring.HashRange{Start: r.Start}, ring.HashRange{End: r.End})
		}
	}
	slices.SortFunc(out, func(a, b ring.HashRange) int { return cmp.Compare(a.Start, b.Start) })
	return out
}

// within reports whether end, which may be 0 for behind the last token, is not behind limit.
func within(end, limit uint64) bool { return limit == 0 || end != 0 && end <= limit }

// earlier returns the smaller of two ends.
func earlier(a, b uint64) uint64 {
	if within(a, b) {
		return a
	}
	return b
}

// of returns the fact of a token.
func (f facts) of(token uint64) (fact, bool) {
	i, found := slices.BinarySearchFunc(f, token, func(x fact, t uint64) int { return cmp.Compare(x.Start, t) })
	if !found {
		i--
	}
	if i < 0 || f[i].End != 0 && token >= f[i].End {
		return fact{}, false
	}
	return f[i], true
}

// in returns the parts of facts that are in ranges (see parts).
func (f facts) in(ranges []ring.HashRange) (out facts) {
	for i, j := 0, 0; i < len(f) && j < len(ranges); {
		p := f[i]
		p.Start, p.End = max(p.Start, ranges[j].Start), earlier(p.End, ranges[j].End)
		if p.End == 0 || p.Start < p.End {
			out = append(out, p)
		}
		if within(f[i].End, ranges[j].End) {
			i++
		} else {
			j++
		}
	}
	return out
}

// with returns facts with one more, of ranges (see parts). Where both say something the newer counts.
func (f facts) with(ranges []ring.HashRange, seq ikey.Seq, at int64) facts {
	var out facts
	known := f.in(ranges)
	for _, k := range known {
		k.seq, k.at = max(k.seq, seq), max(k.at, at)
		out = append(out, k)
	}
	for _, r := range parts(ring.Subtract(ranges, known.ranges())) {
		out = append(out, fact{r, seq, at})
	}
	out = append(out, f.in(parts(ring.Subtract(f.ranges(), ranges)))...)
	return out.normal()
}

func (f facts) ranges() []ring.HashRange {
	out := make([]ring.HashRange, len(f))
	for i := range f {
		out[i] = f[i].HashRange
	}
	return out
}

// normal sorts disjoint facts, and unites neighbours that say the same; if there are too many, neighbours
// under the older of what they say.
func (f facts) normal() facts {
	slices.SortFunc(f, func(a, b fact) int { return cmp.Compare(a.Start, b.Start) })
	out := f.united(func(a, b fact) bool { return a.seq == b.seq && a.at == b.at })
	for within := ikey.Seq(1); len(out) > maxFacts && within < ikey.MaxSeq; within *= 2 {
		out = out.united(func(a, b fact) bool { return max(a.seq, b.seq)-min(a.seq, b.seq) <= within })
	}
	if len(out) > maxFacts {
		out = out[:maxFacts] // ranges that do not touch: those without a fact are collected later
	}
	return out
}

// united returns facts with neighbours that touch made one where they are alike.
func (f facts) united(alike func(a, b fact) bool) facts {
	var out facts
	for _, x := range f {
		if n := len(out); n > 0 && out[n-1].End == x.Start && alike(out[n-1], x) {
			last := &out[n-1]
			last.End, last.seq, last.at = x.End, min(last.seq, x.seq), min(last.at, x.at)
			continue
		}
		out = append(out, x)
	}
	return out
}

// format is the first byte of a record: of a peer, its incarnation (length, bytes), the number of facts and
// of each start and end (big endian), sequence and time; of the members, the replication factor and a map
// of libs/membership. Numbers are varints.
const format = 1

var errFormat = errors.New("malformed record")

func encodeFacts(incarnation string, f facts) []byte {
	b := []byte{format}
	b = binary.AppendUvarint(b, uint64(len(incarnation)))
	b = append(b, incarnation...)
	b = binary.AppendUvarint(b, uint64(len(f)))
	for _, x := range f {
		b = binary.BigEndian.AppendUint64(b, x.Start)
		b = binary.BigEndian.AppendUint64(b, x.End)
		b = binary.AppendUvarint(b, uint64(x.seq))
		b = binary.AppendUvarint(b, uint64(x.at))
	}
	return b
}

func decodeFacts(b []byte) (incarnation string, f facts, err error) {
	if len(b) == 0 || b[0] != format {
		return "", nil, fmt.Errorf("%w: not of format %d", errFormat, format)
	}
	b = b[1:]
	short := false
	number := func() uint64 {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			short = true
			return 0
		}
		b = b[size:]
		return n
	}
	fixed := func() uint64 {
		if len(b) < 8 {
			short = true
			return 0
		}
		n := binary.BigEndian.Uint64(b)
		b = b[8:]
		return n
	}
	n := number()
	if n > membership.MaxIncarnationBytes || n > uint64(len(b)) {
		return "", nil, fmt.Errorf("%w: incarnation of %d bytes", errFormat, n)
	}
	incarnation, b = string(b[:n]), b[n:]
	count := number()
	if count > maxFacts {
		return "", nil, fmt.Errorf("%w: %d facts, at most %d", errFormat, count, maxFacts)
	}
	for range count {
		x := fact{HashRange: ring.HashRange{Start: fixed(), End: fixed()}, seq: ikey.Seq(number()), at: int64(number())}
		last := len(f) - 1
		if short || x.End != 0 && x.Start >= x.End || x.seq > ikey.MaxSeq || x.at < 0 || last >= 0 && (f[last].End == 0 || f[last].End > x.Start) {
			return "", nil, fmt.Errorf("%w: fact %d", errFormat, last+1)
		}
		f = append(f, x)
	}
	if short || len(b) > 0 {
		return "", nil, fmt.Errorf("%w: it ends at another place", errFormat)
	}
	return incarnation, f, nil
}

func encodeMembers(factor int, m membership.Map) ([]byte, error) {
	encoded, err := membership.Encode(m)
	if err != nil {
		return nil, err
	}
	return append(binary.AppendUvarint([]byte{format}, uint64(factor)), encoded...), nil
}

func decodeMembers(b []byte) (factor int, m membership.Map, err error) {
	if len(b) == 0 || b[0] != format {
		return 0, nil, fmt.Errorf("%w: not of format %d", errFormat, format)
	}
	n, size := binary.Uvarint(b[1:])
	if size <= 0 || n > 1<<16 {
		return 0, nil, fmt.Errorf("%w: replication factor", errFormat)
	}
	m, err = membership.Decode(b[1+size:])
	return int(n), m, err
}
