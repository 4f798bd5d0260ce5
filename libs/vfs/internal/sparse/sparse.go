// Package sparse holds the content of a file in memory, without the stretches that were never
// written. It never locks: its owner does.
package sparse

import (
	"errors"
	"io"
)

// chunkBytes is the granularity of what is allocated: small enough for many little files, large
// enough that a preallocated segment costs a short slice of pointers.
const chunkBytes = 16 << 10

// Bytes is a growing sequence of bytes; what was never written reads as zero.
type Bytes struct {
	size   int64
	chunks [][]byte // nil: zeros
}

// Size returns the length in bytes.
func (b *Bytes) Size() int64 { return b.size }

// ReadAt reads like io.ReaderAt.
func (b *Bytes) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	n := 0
	for n < len(p) && off < b.size {
		want := min(int64(len(p)-n), b.size-off, chunkBytes-off%chunkBytes)
		dst := p[n : n+int(want)]
		if c := b.chunks[off/chunkBytes]; c != nil {
			copy(dst, c[off%chunkBytes:])
		} else {
			clear(dst)
		}
		n += int(want)
		off += want
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes like io.WriterAt and extends b if needed.
func (b *Bytes) WriteAt(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	if end := off + int64(len(p)); end > b.size {
		b.Resize(end)
	}
	for len(p) > 0 {
		i := off / chunkBytes
		if b.chunks[i] == nil {
			b.chunks[i] = make([]byte, chunkBytes)
		}
		n := copy(b.chunks[i][off%chunkBytes:], p)
		p = p[n:]
		off += int64(n)
	}
}

// Resize sets the length; bytes beyond the old one read as zero.
func (b *Bytes) Resize(size int64) {
	if size < b.size && size%chunkBytes != 0 {
		if c := b.chunks[size/chunkBytes]; c != nil {
			clear(c[size%chunkBytes:])
		}
	}
	want := int((size + chunkBytes - 1) / chunkBytes)
	if want <= len(b.chunks) {
		clear(b.chunks[want:])
		b.chunks = b.chunks[:want]
	} else {
		b.chunks = append(b.chunks, make([][]byte, want-len(b.chunks))...)
	}
	b.size = size
}

// Clone returns an independent copy.
func (b *Bytes) Clone() *Bytes {
	c := &Bytes{size: b.size, chunks: make([][]byte, len(b.chunks))}
	for i, chunk := range b.chunks {
		if chunk != nil {
			c.chunks[i] = append([]byte(nil), chunk...)
		}
	}
	return c
}

// Extents calls f for each stretch that was written, in order. p belongs to b.
func (b *Bytes) Extents(f func(p []byte, off int64)) {
	for i, c := range b.chunks {
		if c != nil {
			off := int64(i) * chunkBytes
			f(c[:min(chunkBytes, b.size-off)], off)
		}
	}
}
