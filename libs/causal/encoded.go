package causal

import "bytes"

// JoinEncoded appends to dst the encoding of the join of two encoded records. The result depends
// not on their order; newer and older only say which one usually supersedes the other. Equal records
// and two single siblings of which one supersedes the other cost no allocation.
func JoinEncoded(dst []byte, newer, older []byte) ([]byte, error) {
	a := parsedPool.Get().(*parsed)
	defer a.release()
	if err := a.parse(newer); err != nil {
		return dst, err
	}
	if bytes.Equal(newer, older) {
		return append(dst, newer...), nil
	}
	b := parsedPool.Get().(*parsed)
	defer b.release()
	if err := b.parse(older); err != nil {
		return dst, err
	}
	if len(a.sibs) == 1 && len(b.sibs) == 1 {
		if rawBelow(b, a) {
			return append(dst, newer...), nil
		}
		if rawBelow(a, b) {
			return append(dst, older...), nil
		}
	}
	ra, rb := a.record(), b.record()
	for _, r := range [...]Record{ra, rb} {
		if err := r.validateOrder(); err != nil {
			return dst, malformed("%v", err)
		}
	}
	return Join(ra, rb).Encode(dst), nil
}

// rawBelow is Sibling.below for the only siblings of two records.
func rawBelow(a, b *parsed) bool {
	sa, sb := &a.sibs[0], &b.sibs[0]
	clock := b.clock(sb)
	// strict: b has a write that a has not; counted for plain clocks only.
	strict, j, dotSeen := false, 0, sa.dotID < 0
	ea := a.clock(sa)
	for i := range clock {
		id, counter := b.id(clock[i].id), clock[i].counter
		have := uint64(0)
		if j < len(ea) && bytes.Equal(a.id(ea[j].id), id) {
			have, j = ea[j].counter, j+1
		}
		if sa.dotID >= 0 && bytes.Equal(a.id(sa.dotID), id) {
			have, dotSeen = sa.dotCounter, true
		}
		if have > counter {
			return false
		}
		strict = strict || have < counter
	}
	// An entry of a that b lacks stops j for good: both clocks ascend.
	if j < len(ea) || !dotSeen {
		return false
	}
	return sb.dotID >= 0 || strict
}

// Inspect reports the hybrid logical timestamp that a collection's gcBefore must have passed
// before something of the encoded record can be collected; ok is false if nothing ever can, and
// for bytes that are not a record. It reads no value and does not allocate.
func Inspect(value []byte) (collectibleHLC uint64, ok bool) {
	collectibleHLC, ok, _ = inspect(value)
	return collectibleHLC, ok
}

func inspect(value []byte) (at uint64, ok bool, err error) {
	p := parsedPool.Get().(*parsed)
	defer p.release()
	if err := p.parse(value); err != nil {
		return 0, false, err
	}
	for i := range p.sibs {
		t := p.sibs[i].timestamp
		switch {
		case p.sibs[i].flags&flagTombstone != 0:
		case p.sibs[i].expiresAt > 0:
			t = expiryHLC(p.sibs[i].expiresAt)
		default:
			continue
		}
		if !ok || t < at {
			at, ok = t, true
		}
	}
	return at, ok, nil
}

// Summary is what can be told of an encoded record without making anything of it.
type Summary struct {
	// Siblings counts all of them, Live those that are neither tombstones nor expired.
	Siblings, Live int
	// MaxTimestamp is the latest timestamp of a sibling.
	MaxTimestamp uint64
	// ValueBytes is the length of all values together.
	ValueBytes int
}

// Summarize returns the summary of an encoded record at the given Unix second. It reads no value
// and does not allocate.
func Summarize(b []byte, nowUnix int64) (Summary, error) {
	p := parsedPool.Get().(*parsed)
	defer p.release()
	if err := p.parse(b); err != nil {
		return Summary{}, err
	}
	sum := Summary{Siblings: len(p.sibs)}
	for i := range p.sibs {
		s := &p.sibs[i]
		if s.flags&flagTombstone == 0 && (s.expiresAt == 0 || nowUnix < s.expiresAt) {
			sum.Live++
		}
		sum.MaxTimestamp = max(sum.MaxTimestamp, s.timestamp)
		sum.ValueBytes += s.value.end - s.value.start
	}
	return sum, nil
}

// CollectEncoded is Collect on an encoded record: it appends what remains to dst and reports how
// many siblings went. If nothing remains it appends nothing and left is false. A record without
// anything to collect is copied as it is, without an allocation.
func CollectEncoded(dst, b []byte, gcBefore uint64) (out []byte, dropped int, left bool, err error) {
	at, ok, err := inspect(b)
	if err != nil {
		return dst, 0, false, err
	}
	if !ok || at >= gcBefore {
		return append(dst, b...), 0, true, nil
	}
	r, err := Decode(b)
	if err != nil {
		return dst, 0, false, err
	}
	r, dropped = Collect(r, gcBefore)
	if len(r.Siblings) == 0 {
		return dst, dropped, false, nil
	}
	return r.Encode(dst), dropped, true, nil
}
