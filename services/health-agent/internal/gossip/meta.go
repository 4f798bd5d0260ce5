package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/pairdb/pairdb/libs/membership"
)

// Meta is what an agent says lightly of its pod: every change goes to all others within about a
// second.
type Meta struct {
	// GRPCAddr is where its node serves, host:port.
	GRPCAddr string
	// Version of its node's binary; what is longer than maxVersionBytes is cut.
	Version string
	// Ready is its verdict; Degraded is a set of words, as verdict.Bits makes it.
	Ready    bool
	Degraded uint64
	// DiskPercent is the used part of its data volume, 0 to 100; negative: not known.
	DiskPercent int
	// Incarnation of its data directory, and the version of its declaration that it knows itself.
	Incarnation     string
	DeclaredVersion uint64

	// since is when the agent started, in milliseconds since the Unix epoch: of two with one node id
	// the earlier stays. leaving says that it takes leave: its next silence is no failure.
	since   int64
	leaving bool
}

const (
	// maxMetaBytes is memberlist's limit.
	maxMetaBytes = 512
	// maxVersionBytes keeps the longest meta at 460 bytes.
	maxVersionBytes = 64

	metaFormat  = 1
	flagReady   = 1 << 0
	flagLeaving = 1 << 1
	// noDisk stands for a use of the volume that is not known.
	noDisk = 0xff
)

var errMeta = errors.New("malformed meta")

// encode returns the meta, at most maxMetaBytes long:
//
//	format 1, flags, used percent of the disk (0xff: not known)
//	varints: degraded words, declared version, start of the agent in ms
//	texts behind their lengths: gRPC address, version, incarnation
//
// Later fields are appended: an agent ignores what is behind those that it knows. What would be too
// long is left out, for a panic of memberlist is the alternative.
func (m Meta) encode() []byte {
	flags, disk := byte(0), byte(noDisk)
	if m.Ready {
		flags |= flagReady
	}
	if m.leaving {
		flags |= flagLeaving
	}
	if m.DiskPercent >= 0 {
		disk = byte(min(m.DiskPercent, 100))
	}
	b := []byte{metaFormat, flags, disk}
	b = binary.AppendUvarint(b, m.Degraded)
	b = binary.AppendUvarint(b, m.DeclaredVersion)
	b = binary.AppendUvarint(b, uint64(max(m.since, 0)))
	b = appendText(b, m.GRPCAddr, membership.MaxAddrBytes)
	b = appendText(b, m.Version[:min(len(m.Version), maxVersionBytes)], maxVersionBytes)
	return appendText(b, m.Incarnation, membership.MaxIncarnationBytes)
}

func appendText(b []byte, s string, maxBytes int) []byte {
	if len(s) > maxBytes || !utf8.ValidString(s) {
		s = ""
	}
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decodeMeta reads the meta of a peer; nothing of b is kept.
func decodeMeta(b []byte) (Meta, error) {
	if len(b) > maxMetaBytes {
		return Meta{}, fmt.Errorf("%w: %d bytes, at most %d", errMeta, len(b), maxMetaBytes)
	}
	if len(b) < 3 || b[0] != metaFormat {
		return Meta{}, fmt.Errorf("%w: not of format %d", errMeta, metaFormat)
	}
	m := Meta{Ready: b[1]&flagReady != 0, leaving: b[1]&flagLeaving != 0, DiskPercent: -1}
	if b[2] != noDisk {
		m.DiskPercent = int(min(b[2], 100))
	}
	r := fields{b: b[3:]}
	m.Degraded = r.number()
	m.DeclaredVersion = r.number()
	m.since = int64(r.number() & (1<<63 - 1))
	m.GRPCAddr = r.text(membership.MaxAddrBytes)
	m.Version = r.text(maxVersionBytes)
	m.Incarnation = r.text(membership.MaxIncarnationBytes)
	if r.bad {
		return Meta{}, errMeta
	}
	return m, nil
}

// fields takes values off the front of b; after a bad one it returns zero values.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) number() uint64 {
	n, size := binary.Uvarint(f.b)
	if f.bad || size <= 0 {
		f.bad = true
		return 0
	}
	f.b = f.b[size:]
	return n
}

func (f *fields) text(maxBytes uint64) string {
	n := f.number()
	if f.bad || n > maxBytes || n > uint64(len(f.b)) || !utf8.Valid(f.b[:n]) {
		f.bad = true
		return ""
	}
	s := string(f.b[:n])
	f.b = f.b[n:]
	return s
}
