package commitlog

import "sync/atomic"

// Metrics are counts since Open, and the state of now.
type Metrics struct {
	Frames, PayloadBytes    uint64 // appended
	WrittenBytes            uint64 // with headers and padding
	Syncs                   uint64
	FailedWrites            uint64
	Rotations               uint64
	Created, Recycled       uint64 // segments that were made, from nothing and from spare files
	Prewritten              uint64 // segments whose blocks were written ahead
	Removed                 uint64
	LiveSegments, LiveBytes uint64
	SpareSegments           uint64
	Pins                    uint64
	OldestSegment           uint64 // 0: none
}

type metrics struct {
	frames, payloadBytes, writtenBytes, syncs, failedWrites, rotations, created, recycled, prewritten, removed atomic.Uint64
}

// Metrics returns counts and state.
func (l *Log) Metrics() Metrics {
	c := &l.metrics
	m := Metrics{
		Frames: c.frames.Load(), PayloadBytes: c.payloadBytes.Load(), WrittenBytes: c.writtenBytes.Load(),
		Syncs: c.syncs.Load(), FailedWrites: c.failedWrites.Load(), Rotations: c.rotations.Load(),
		Created: c.created.Load(), Recycled: c.recycled.Load(), Prewritten: c.prewritten.Load(), Removed: c.removed.Load(),
	}
	for _, s := range l.Segments() {
		m.LiveSegments++
		m.LiveBytes += uint64(s.Bytes)
		if m.OldestSegment == 0 {
			m.OldestSegment = s.Number
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m.SpareSegments = uint64(len(l.spare))
	for _, n := range l.pins {
		m.Pins += uint64(n)
	}
	return m
}
