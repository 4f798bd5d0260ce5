package store

import "github.com/pairdb/pairdb/libs/causal"

// parcel is what goes into one message of a stream: copies of encoded records, and how much they will
// take on the wire.
type parcel struct {
	buf   []byte // values of the records
	bytes int
	count int
}

// add decodes a copy of a record. fits is false for one that belongs into the next message; the first
// one always fits. bytes is what goes with the record.
func (p *parcel) add(bytes int, value []byte) (rec causal.Record, fits bool, err error) {
	start := len(p.buf)
	p.buf = append(p.buf, value...)
	// If buf moves later, what is decoded here stays valid in the old memory.
	if rec, err = causal.Decode(p.buf[start:]); err != nil {
		return rec, false, err
	}
	if fits = p.room(bytes + siblingsBytes(rec.Siblings)); !fits {
		p.buf = p.buf[:start]
	}
	return rec, fits, nil
}

// room reports whether so many bytes fit, and counts them if so.
func (p *parcel) room(bytes int) bool {
	bytes += partOverhead
	if p.count > 0 && p.bytes+bytes > chunkBytes {
		return false
	}
	p.bytes += bytes
	p.count++
	return true
}

// reset empties the parcel; what was decoded is not valid any more.
func (p *parcel) reset() {
	p.bytes, p.count = 0, 0
	if p.buf = p.buf[:0]; cap(p.buf) > maxScratchBytes {
		p.buf = nil
	}
}

// What the wire takes beside texts and values, at most: tags, lengths and numbers.
const (
	partOverhead    = 32
	siblingOverhead = 64
	entryOverhead   = 16
)

func siblingsBytes(siblings []causal.Sibling) (n int) {
	for i := range siblings {
		s := &siblings[i]
		n += siblingOverhead + len(s.Value) + len(s.Dot.Node) + clockBytes(s.Clock) + entryOverhead*len(s.Clock)
	}
	return n
}
