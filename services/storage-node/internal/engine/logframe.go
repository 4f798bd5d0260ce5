package engine

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/s2"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
)

// Types of frames in the commit log; docs/formats/commitlog.md.
const (
	// frameBatch is a group of batches: first sequence u64 ‖ changes u32 ‖ the changes (Batch).
	// Change i has the sequence first + i. A frame is there as a whole or not at all.
	frameBatch uint8 = 1
	// frameIngest names tables that were ingested; ingestmarker.go.
	frameIngest uint8 = 2
	// framePacked is a frameBatch whose changes are an S2 block: first sequence u64 ‖ changes u32 ‖
	// the block.
	framePacked uint8 = 3

	groupHeaderBytes = 8 + 4
)

const (
	// packFrom: smaller groups save less than their block costs.
	packFrom = 256
	// packPause is how many groups stay as they are after one that did not shrink by an eighth: data
	// that is compressed already does not pay for the attempt.
	packPause = 32
)

// logPacker compresses the groups of the leader.
type logPacker struct {
	buf   []byte
	pause int
}

// pack returns the frame of the log for frame, a frameBatch. The payload is valid until the next call.
func (p *logPacker) pack(frame []byte) (kind uint8, payload []byte) {
	raw := frame[groupHeaderBytes:]
	if len(raw) < packFrom {
		return frameBatch, frame
	}
	if p.pause > 0 {
		p.pause--
		return frameBatch, frame
	}
	if need := groupHeaderBytes + s2.MaxEncodedLen(len(raw)); cap(p.buf) < need {
		p.buf = make([]byte, need)
	}
	p.buf = p.buf[:cap(p.buf)]
	copy(p.buf, frame[:groupHeaderBytes])
	block := s2.Encode(p.buf[groupHeaderBytes:], raw)
	if len(block) > len(raw)/8*7 {
		p.pause = packPause
		return frameBatch, frame
	}
	return framePacked, p.buf[:groupHeaderBytes+len(block)]
}

// logUnpacker decodes groups of the log.
type logUnpacker struct {
	buf []byte
}

// shrink gives the memory of a large group back, once what group returned is not needed any more.
func (u *logUnpacker) shrink() {
	if cap(u.buf) > keptUnpacked {
		u.buf = nil
	}
}

// keptUnpacked is what is kept for the next group.
const keptUnpacked = 1 << 20

// group decodes a frameBatch or a framePacked. ops is valid until the next call, and as long as payload.
func (u *logUnpacker) group(kind uint8, payload []byte) (first ikey.Seq, count uint32, ops []byte, err error) {
	if len(payload) < groupHeaderBytes {
		return 0, 0, nil, fmt.Errorf("%w: group of %d bytes", ErrCorrupt, len(payload))
	}
	first = ikey.Seq(binary.LittleEndian.Uint64(payload))
	count = binary.LittleEndian.Uint32(payload[8:])
	if first == 0 || first >= ikey.MaxSeq || count == 0 {
		return 0, 0, nil, fmt.Errorf("%w: group of %d changes from sequence %d", ErrCorrupt, count, first)
	}
	ops = payload[groupHeaderBytes:]
	if kind == framePacked {
		ops, err = u.unpack(ops)
	}
	return first, count, ops, err
}

// unpack decodes a block, which never has more than a frame would hold unpacked.
func (u *logUnpacker) unpack(block []byte) ([]byte, error) {
	n, err := s2.DecodedLen(block)
	if err != nil || n > commitlog.MaxPayloadBytes-groupHeaderBytes {
		return nil, fmt.Errorf("%w: packed group of %d bytes", ErrCorrupt, n)
	}
	if cap(u.buf) < n {
		u.buf = make([]byte, n)
	}
	ops, err := s2.Decode(u.buf[:cap(u.buf)], block)
	if err != nil {
		return nil, fmt.Errorf("%w: packed group: %w", ErrCorrupt, err)
	}
	return ops, nil
}
