package causal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"sync"
)

// ErrMalformed says that bytes are not an encoded record.
var ErrMalformed = errors.New("malformed record")

const (
	recordVersion = 1

	flagTombstone = 1 << 0
	flagDot       = 1 << 1
	flagExpiry    = 1 << 2
	flagsKnown    = flagTombstone | flagDot | flagExpiry

	// minSiblingBytes: flags, clock count, timestamp.
	minSiblingBytes = 1 + 1 + 8
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

// parsed is a record's metadata as positions in its bytes, so that it can be compared without
// making strings. A parsed is reused through a pool.
type parsed struct {
	b       []byte
	ids     []span
	sibs    []rawSibling
	entries []rawEntry
	used    []bool
}

type span struct{ start, end int }

type rawSibling struct {
	flags              byte
	dotID              int
	dotCounter         uint64
	firstEntry, nEntry int
	timestamp          uint64
	expiresAt          int64
	value              span
}

type rawEntry struct {
	id      int
	counter uint64
	raised  int64
}

var parsedPool = sync.Pool{New: func() any { return new(parsed) }}

func (p *parsed) release() {
	p.b = nil
	// Do not let one huge record keep its memory for ever.
	if cap(p.entries) <= 1<<14 && cap(p.sibs) <= 1<<12 {
		parsedPool.Put(p)
	}
}

func (p *parsed) id(i int) []byte { return p.b[p.ids[i].start:p.ids[i].end] }

func (p *parsed) clock(s *rawSibling) []rawEntry {
	return p.entries[s.firstEntry : s.firstEntry+s.nEntry]
}

// parse reads the record in b. It checks everything but the order of several siblings among
// themselves, which needs their values.
func (p *parsed) parse(b []byte) error {
	*p = parsed{b: b, ids: p.ids[:0], sibs: p.sibs[:0], entries: p.entries[:0], used: p.used[:0]}
	if len(b) == 0 {
		return malformed("empty")
	}
	if b[0] != recordVersion {
		return malformed("version %d, this program knows %d", b[0], recordVersion)
	}
	c := cursor{b: b, pos: 1}
	n := c.uvarint()
	if c.bad || n > uint64(len(b)-c.pos) {
		return malformed("metadata exceeds the record")
	}
	end := c.pos + int(n)
	c.b = b[:end]
	if err := p.parseIDs(&c); err != nil {
		return err
	}
	if err := p.parseSiblings(&c, end); err != nil {
		return err
	}
	if c.pos != end {
		return malformed("%d bytes after the metadata", end-c.pos)
	}
	for i := range p.used {
		if !p.used[i] {
			return malformed("unused node id")
		}
	}
	return nil
}

func (p *parsed) parseIDs(c *cursor) error {
	n := c.count(2)
	for i := range n {
		size := c.uvarint()
		if c.bad || size == 0 || size > MaxNodeIDBytes || size > uint64(len(c.b)-c.pos) {
			return malformed("node id %d: bad length", i)
		}
		p.ids = append(p.ids, span{c.pos, c.pos + int(size)})
		c.pos += int(size)
		if i > 0 && string(p.id(i-1)) >= string(p.id(i)) {
			return malformed("node id %d: out of order", i)
		}
		p.used = append(p.used, false)
	}
	return nil
}

func (p *parsed) parseSiblings(c *cursor, values int) error {
	n := c.count(minSiblingBytes)
	if c.bad {
		return malformed("bad count")
	}
	for i := range n {
		s := rawSibling{value: span{values, values}, dotID: -1}
		size, err := p.parseSibling(c, &s)
		if err != nil {
			return fmt.Errorf("sibling %d: %w", i, err)
		}
		if size > uint64(len(p.b)-values) {
			return malformed("sibling %d: value exceeds the record", i)
		}
		values += int(size)
		s.value.end = values
		p.sibs = append(p.sibs, s)
	}
	if values != len(p.b) {
		return malformed("%d bytes after the values", len(p.b)-values)
	}
	return nil
}

// parseSibling reads one sibling's metadata and returns the length of its value.
func (p *parsed) parseSibling(c *cursor, s *rawSibling) (valueLen uint64, err error) {
	s.flags = c.byte()
	if s.flags&^flagsKnown != 0 || s.flags&flagTombstone != 0 && s.flags&flagExpiry != 0 {
		return 0, malformed("flags %#x", s.flags)
	}
	if s.flags&flagDot != 0 {
		id := c.uvarint()
		s.dotCounter = c.uvarint()
		if c.bad || id >= uint64(len(p.ids)) || s.dotCounter == 0 {
			return 0, malformed("bad dot")
		}
		s.dotID = int(id)
		p.used[s.dotID] = true
	}
	if err := p.parseClock(c, s); err != nil {
		return 0, err
	}
	s.timestamp = c.fixed64()
	for i := s.firstEntry; i < len(p.entries); i++ {
		if p.entries[i].raised, err = decodeRaised(uint64(p.entries[i].raised), s.timestamp); err != nil {
			return 0, err
		}
	}
	if s.flags&flagExpiry != 0 {
		at := c.uvarint()
		if at == 0 || at > maxUnix {
			return 0, malformed("expiry %d", at)
		}
		s.expiresAt = int64(at)
	}
	if s.flags&flagTombstone == 0 {
		valueLen = c.uvarint()
	}
	if c.bad {
		return 0, malformed("short or padded number")
	}
	return valueLen, nil
}

func (p *parsed) parseClock(c *cursor, s *rawSibling) error {
	n := c.count(3)
	if c.bad || n > MaxClockEntries || n == 0 && s.flags&flagDot == 0 {
		return malformed("clock of %d entries", n)
	}
	s.firstEntry, s.nEntry = len(p.entries), n
	next := uint64(0)
	for range n {
		gap, counter, raised := c.uvarint(), c.uvarint(), c.uvarint()
		if c.bad || gap >= uint64(len(p.ids)) || next+gap >= uint64(len(p.ids)) || counter == 0 {
			return malformed("bad clock entry")
		}
		id := int(next + gap)
		if id == s.dotID && counter >= s.dotCounter {
			return malformed("clock contains its own dot")
		}
		p.used[id] = true
		p.entries = append(p.entries, rawEntry{id: id, counter: counter, raised: int64(raised)})
		next = uint64(id) + 1
	}
	return nil
}

func encodeRaised(raised int64, ts uint64) uint64 {
	if raised == 0 {
		return 0
	}
	d := seconds(ts) - raised
	return 1 + uint64(d<<1^d>>63)
}

func decodeRaised(u, ts uint64) (int64, error) {
	if u == 0 {
		return 0, nil
	}
	u--
	raised := seconds(ts) - int64(u>>1^-(u&1))
	// The distance is below 2^63, so the subtraction can only leave the range, not wrap into it.
	if raised <= 0 || raised > maxUnix {
		return 0, malformed("entry raised at %d", raised)
	}
	return raised, nil
}

// cursor reads numbers; bad is set by the first one that is short or not in its shortest form.
type cursor struct {
	b   []byte
	pos int
	bad bool
}

func (c *cursor) byte() byte {
	if c.pos >= len(c.b) {
		c.bad = true
		return 0
	}
	c.pos++
	return c.b[c.pos-1]
}

func (c *cursor) uvarint() uint64 {
	if c.pos < len(c.b) && c.b[c.pos] < 0x80 {
		c.pos++
		return uint64(c.b[c.pos-1])
	}
	v, n := binary.Uvarint(c.b[c.pos:])
	if n <= 0 || n != (bits.Len64(v|1)+6)/7 {
		c.bad = true
		return 0
	}
	c.pos += n
	return v
}

// count reads how many items of at least size bytes follow.
func (c *cursor) count(size int) int {
	n := c.uvarint()
	if n > uint64(len(c.b)-c.pos)/uint64(size) || n > math.MaxInt32 {
		c.bad = true
		return 0
	}
	return int(n)
}

func (c *cursor) fixed64() uint64 {
	if len(c.b)-c.pos < 8 {
		c.bad = true
		return 0
	}
	c.pos += 8
	return binary.LittleEndian.Uint64(c.b[c.pos-8:])
}
