package causal

import (
	"encoding/binary"
	"slices"
)

// Encode appends the record to dst. The record must be valid: what came from outside went through
// NewRecord or Decode. Equal records have equal bytes.
func (r Record) Encode(dst []byte) []byte {
	var few [24]string
	ids := nodeIDs(few[:0], r.Siblings)
	dst = append(dst, recordVersion, 0)
	start := len(dst)
	dst = binary.AppendUvarint(dst, uint64(len(ids)))
	for _, id := range ids {
		dst = binary.AppendUvarint(dst, uint64(len(id)))
		dst = append(dst, id...)
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.Siblings)))
	values := 0
	for i := range r.Siblings {
		dst = r.Siblings[i].encode(dst, ids)
		values += len(r.Siblings[i].Value)
	}
	dst = setLength(dst, start)
	dst = slices.Grow(dst, values)
	for i := range r.Siblings {
		dst = append(dst, r.Siblings[i].Value...)
	}
	return dst
}

// setLength writes the length of dst[start:] in front of it, where one byte is reserved, and makes
// room if that is too little.
func setLength(dst []byte, start int) []byte {
	n := len(dst) - start
	if n < 0x80 {
		dst[start-1] = byte(n)
		return dst
	}
	var buf [binary.MaxVarintLen64]byte
	size := binary.PutUvarint(buf[:], uint64(n))
	return slices.Replace(dst, start-1, start, buf[:size]...)
}

func (s *Sibling) encode(dst []byte, ids []string) []byte {
	var flags byte
	if s.Tombstone {
		flags |= flagTombstone
	}
	if !s.Dot.IsZero() {
		flags |= flagDot
	}
	if s.ExpiresAt > 0 {
		flags |= flagExpiry
	}
	dst = append(dst, flags)
	if !s.Dot.IsZero() {
		dst = binary.AppendUvarint(dst, uint64(indexOf(ids, s.Dot.Node)))
		dst = binary.AppendUvarint(dst, s.Dot.Counter)
	}
	dst = binary.AppendUvarint(dst, uint64(len(s.Clock)))
	next := 0
	for _, e := range s.Clock {
		gap := indexOf(ids[next:], e.Node)
		next += gap + 1
		dst = binary.AppendUvarint(dst, uint64(gap))
		dst = binary.AppendUvarint(dst, e.Counter)
		dst = binary.AppendUvarint(dst, encodeRaised(e.Raised, s.Timestamp))
	}
	dst = binary.LittleEndian.AppendUint64(dst, s.Timestamp)
	if s.ExpiresAt > 0 {
		dst = binary.AppendUvarint(dst, uint64(s.ExpiresAt))
	}
	if !s.Tombstone {
		dst = binary.AppendUvarint(dst, uint64(len(s.Value)))
	}
	return dst
}

// nodeIDs appends every node id of the siblings to ids, ascending and once.
func nodeIDs(ids []string, siblings []Sibling) []string {
	for i := range siblings {
		s := &siblings[i]
		for _, e := range s.Clock {
			ids = append(ids, e.Node)
		}
		if !s.Dot.IsZero() {
			ids = append(ids, s.Dot.Node)
		}
	}
	if len(siblings) == 1 && (siblings[0].Dot.IsZero() || len(ids) == 1) {
		return ids
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func indexOf(ids []string, id string) int {
	if len(ids) > 0 && ids[0] == id {
		return 0
	}
	i, _ := slices.BinarySearch(ids, id)
	return i
}

// Decode reads an encoded record. Values alias b, node ids do not. ErrMalformed says what is wrong;
// what Decode accepts, Encode turns into the same bytes.
func Decode(b []byte) (Record, error) {
	p := parsedPool.Get().(*parsed)
	defer p.release()
	if err := p.parse(b); err != nil {
		return Record{}, err
	}
	r := p.record()
	if len(r.Siblings) > 1 {
		if err := r.validateOrder(); err != nil {
			return Record{}, malformed("%v", err)
		}
	}
	return r, nil
}

// record builds the record in three allocations: siblings, clock entries, node ids.
func (p *parsed) record() Record {
	if len(p.sibs) == 0 {
		return Record{}
	}
	base, end := p.ids[0].start, p.ids[len(p.ids)-1].end
	names := string(p.b[base:end])
	id := func(i int) string { return names[p.ids[i].start-base : p.ids[i].end-base] }

	entries := make([]Entry, len(p.entries))
	for i, e := range p.entries {
		entries[i] = Entry{Node: id(e.id), Counter: e.counter, Raised: e.raised}
	}
	siblings := make([]Sibling, len(p.sibs))
	for i := range p.sibs {
		raw, s := &p.sibs[i], &siblings[i]
		last := raw.firstEntry + raw.nEntry
		*s = Sibling{
			Clock:     Clock(entries[raw.firstEntry:last:last]),
			Value:     p.b[raw.value.start:raw.value.end:raw.value.end],
			Timestamp: raw.timestamp,
			ExpiresAt: raw.expiresAt,
			Tombstone: raw.flags&flagTombstone != 0,
		}
		if raw.dotID >= 0 {
			s.Dot = Dot{Node: id(raw.dotID), Counter: raw.dotCounter}
		}
	}
	return Record{Siblings: siblings}
}
