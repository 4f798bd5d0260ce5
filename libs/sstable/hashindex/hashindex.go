// Package hashindex says where in a table the value of a key is likely to be, with one look into one
// cache line. It never says that a key is not there: what it finds must be compared with the key, and
// what it doesn't find may have had no room.
//
// Layout: lines of 64 bytes, numbers little endian.
//
//	tags     8 × u16: low bits of the hash, never 0; 0 is a free slot
//	offsets  8 × u32: where in the file the value block begins
//	lengths  8 × u16: of its payload
//
// The line of a hash h of n lines is (h >> 32) × (n − 1) >> 32; a key whose line is full goes to the next
// one, and is left out when that is full, too.
package hashindex

import "encoding/binary"

const (
	// LineBytes is a cache line: all that a look-up reads, but for lines that are full.
	LineBytes = 64
	// MaxOffset and MaxLength bound what a slot can point to.
	MaxOffset, MaxLength = 1<<32 - 1, 1<<16 - 1

	slots     = 8
	offsetsAt = 2 * slots
	lengthsAt = offsetsAt + 4*slots
	// perLine is how many keys there are for each line: seven of ten slots are used, and about one
	// key in a hundred finds no room.
	perLine = 5.6
)

// Place is where a value is.
type Place struct {
	Offset uint32
	Length uint16
}

// Builder collects keys. The zero value is ready.
type Builder struct {
	hashes []uint64
	places []Place
}

// Add adds a key by its hash.
func (b *Builder) Add(hash uint64, p Place) {
	b.hashes = append(b.hashes, hash)
	b.places = append(b.places, p)
}

// Len returns how many keys were added.
func (b *Builder) Len() int { return len(b.hashes) }

// SizeBytes returns how long Build is with the keys of now.
func (b *Builder) SizeBytes() int { return lines(len(b.hashes)) * LineBytes }

func lines(keys int) int {
	if keys == 0 {
		return 0
	}
	return int(float64(keys)/perLine) + 2 // one that no hash leads to takes what overflows the last
}

// Build appends the lines to dst. Equal keys in equal order give equal lines.
func (b *Builder) Build(dst []byte) []byte {
	n := lines(len(b.hashes))
	start := len(dst)
	dst = append(dst, make([]byte, n*LineBytes)...)
	all := dst[start:]
	for i, h := range b.hashes {
		at := lineOf(h, n) * LineBytes
		if !put(all[at:at+LineBytes], tag(h), b.places[i]) {
			put(all[at+LineBytes:at+2*LineBytes], tag(h), b.places[i])
		}
	}
	return dst
}

func put(line []byte, tag uint16, p Place) bool {
	for i := range slots {
		if binary.LittleEndian.Uint16(line[2*i:]) == 0 {
			binary.LittleEndian.PutUint16(line[2*i:], tag)
			binary.LittleEndian.PutUint32(line[offsetsAt+4*i:], p.Offset)
			binary.LittleEndian.PutUint16(line[lengthsAt+2*i:], p.Length)
			return true
		}
	}
	return false
}

func lineOf(hash uint64, n int) int { return int((hash >> 32) * uint64(n-1) >> 32) }

func tag(hash uint64) uint16 { return max(uint16(hash), 1) }

// Candidates are the places that a look-up found, in the order in which to try them.
type Candidates struct {
	places [4]Place
	n      int
}

// All returns the places.
func (c *Candidates) All() []Place { return c.places[:c.n] }

// Find looks a hash up in lines that Build made, or in bytes that were such lines once: whatever they
// are, it only reads them. More than four candidates of one hash are not looked at.
func Find(b []byte, hash uint64) (c Candidates) {
	n := len(b) / LineBytes
	if n < 2 {
		return c
	}
	at, want := lineOf(hash, n)*LineBytes, tag(hash)
	for range 2 {
		line := (*[LineBytes]byte)(b[at:])
		full := true
		for i := range slots {
			switch binary.LittleEndian.Uint16(line[2*i:]) {
			case 0:
				full = false
			case want:
				if c.n < len(c.places) {
					c.places[c.n] = Place{Offset: binary.LittleEndian.Uint32(line[offsetsAt+4*i:]), Length: binary.LittleEndian.Uint16(line[lengthsAt+2*i:])}
					c.n++
				}
			}
		}
		if !full {
			break
		}
		at += LineBytes
	}
	return c
}
