package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Options say what a Reader expects.
type Options struct {
	// File is the name for errors.
	File string
	// Epoch is that of the frames to read.
	Epoch uint32
	// Start is the offset of the first frame.
	Start int64
	// Sealed says that frames fill the file up to its size: every other end is damage.
	Sealed bool
	// Positions says that frames were written with their Position.
	Positions bool
}

// readBytes is how much is read at once: large enough that system calls do not count.
const readBytes = 256 << 10

// keptBytes is what a reader keeps for the next frames: one that follows a file may stand at its end for
// days.
const keptBytes = 1 << 20

// epochAt is where the epoch stands in a header.
const epochAt = 12

// Reader walks the frames of a file. It is for one goroutine. Memory: the frame, at least 256 KiB for a
// file, and at most 1 MiB at its end.
type Reader struct {
	src   io.ReaderAt
	size  int64
	o     Options
	off   int64 // of the next frame
	sync  int64 // the largest synced offset seen
	torn  int64
	buf   []byte // bytes of the file from bufAt on
	bufAt int64
	err   error
}

// NewReader reads frames of an epoch from b. Payloads alias b.
func NewReader(b []byte, epoch uint32) *Reader {
	return &Reader{size: int64(len(b)), buf: b, o: Options{Epoch: epoch}}
}

// NewFileReader reads frames from the first size bytes of src. Payloads are valid until the next
// call.
func NewFileReader(src io.ReaderAt, size int64, o Options) *Reader {
	return &Reader{src: src, size: size, o: o, off: o.Start, bufAt: o.Start}
}

// Offset is the end of the last good frame: where the next one stands, or where to cut.
func (r *Reader) Offset() int64 { return r.off }

// Synced is how much of the file is known to have been durable by what was read.
func (r *Reader) Synced() int64 { return r.sync }

// TornBytes is, after ErrTorn, how many bytes the unfinished frames take, as far as can be told.
func (r *Reader) TornBytes() int64 { return r.torn }

// Extend lets a reader that came to the end of what it was given (io.EOF) read on, up to size.
func (r *Reader) Extend(size int64) {
	if size > r.size {
		r.size = size
		if errors.Is(r.err, io.EOF) {
			r.err = nil
		}
	}
}

// Next returns the next frame. The error is io.EOF at a clean end, ErrTorn, an ErrCorrupt, or that of
// reading; it stays.
func (r *Reader) Next() (Header, []byte, error) {
	if r.err != nil {
		return Header{}, nil, r.err
	}
	h, payload, err := r.next()
	if err != nil {
		r.err = err
		return Header{}, nil, err
	}
	return h, payload, nil
}

func (r *Reader) next() (Header, []byte, error) {
	if r.off == r.size {
		if r.src != nil && cap(r.buf) > keptBytes {
			r.buf, r.bufAt = nil, r.off
		}
		return Header{}, nil, io.EOF
	}
	if r.size-r.off < HeaderBytes {
		return Header{}, nil, r.end(r.off, "no whole header")
	}
	b, err := r.bytes(r.off, HeaderBytes)
	if err != nil {
		return Header{}, nil, err
	}
	h, sum, ok := parseHeader(b, r.position(r.off))
	if !ok || h.Epoch != r.o.Epoch {
		return Header{}, nil, r.end(r.off, "no header of the file's epoch")
	}
	if h.Synced > uint64(r.off) {
		return Header{}, nil, &CorruptError{File: r.o.File, Offset: r.off, What: fmt.Sprintf("synced offset %d lies behind the frame", h.Synced)}
	}
	length := int64(h.Length)
	if length > r.size-r.off-HeaderBytes {
		return Header{}, nil, r.tear(fmt.Sprintf("frame of %d bytes reaches beyond the end", length), r.size)
	}
	b, err = r.bytes(r.off, HeaderBytes+int(length))
	if err != nil {
		return Header{}, nil, err
	}
	payload := b[HeaderBytes:]
	if crc32.Checksum(payload, castagnoli) != sum {
		return Header{}, nil, r.tear("payload checksum does not fit", r.off+HeaderBytes+length)
	}
	if r.o.Positions {
		h.Position = uint64(r.off)
	}
	r.off += HeaderBytes + length
	r.sync = max(r.sync, int64(h.Synced))
	return h, payload, nil
}

func (r *Reader) position(off int64) uint64 {
	if r.o.Positions {
		return uint64(off)
	}
	return 0
}

// tear is the end at a frame with a good header that is not whole; it would have ended at end.
func (r *Reader) tear(what string, end int64) error {
	err := r.end(r.off+HeaderBytes, what)
	if err == io.EOF || err == ErrTorn {
		r.torn = max(r.torn, min(end, r.size)-r.off)
		return ErrTorn
	}
	return err
}

// end decides what an end means, by the headers that follow from offset from on.
func (r *Reader) end(from int64, what string) error {
	if r.o.Sealed {
		return &CorruptError{File: r.o.File, Offset: r.off, What: what + ", in a file that is sealed behind it"}
	}
	last, synced, err := r.search(from)
	switch {
	case err != nil:
		return err
	case synced > r.off:
		return &CorruptError{File: r.o.File, Offset: r.off, What: fmt.Sprintf("%s, but a later frame proves that the file was durable up to %d", what, synced)}
	case last > r.off:
		r.torn = last - r.off
		return ErrTorn
	}
	return r.started()
}

// started tells an end where a header was begun from one where nothing was written.
func (r *Reader) started() error {
	b, err := r.bytes(r.off, int(min(HeaderBytes, r.size-r.off)))
	if err != nil {
		return err
	}
	begun := len(bytes.Trim(b, "\x00")) > 0
	if len(b) == HeaderBytes {
		begun = binary.LittleEndian.Uint32(b[epochAt:]) == r.o.Epoch && begun
	}
	if !begun {
		return io.EOF
	}
	r.torn = int64(len(b))
	return ErrTorn
}

// search looks at every offset from from on for headers of the epoch. It returns the end of the last
// frame and the largest synced offset; 0 if there are none.
func (r *Reader) search(from int64) (last, synced int64, err error) {
	var epoch [4]byte
	binary.LittleEndian.PutUint32(epoch[:], r.o.Epoch)
	for at := from; r.size-at >= HeaderBytes; {
		n := min(r.size-at, readBytes)
		b, err := r.bytes(at, int(n))
		if err != nil {
			return 0, 0, err
		}
		for i := 0; ; i++ {
			// The epoch finds candidates at the speed of memory; the rest of the header decides.
			skip := bytes.Index(b[min(i+epochAt, len(b)):], epoch[:])
			if skip < 0 || i+skip+HeaderBytes > len(b) {
				break
			}
			i += skip
			off := at + int64(i)
			h, _, ok := parseHeader(b[i:], r.position(off))
			if !ok || h.Synced > uint64(off) {
				continue
			}
			last = max(last, min(off+HeaderBytes+int64(h.Length), r.size))
			synced = max(synced, int64(h.Synced))
		}
		at += n - (HeaderBytes - 1)
	}
	return last, synced, nil
}

// bytes returns n bytes of the file from off on; off + n is not beyond the size.
func (r *Reader) bytes(off int64, n int) ([]byte, error) {
	if r.src == nil {
		return r.buf[off : off+int64(n) : off+int64(n)], nil
	}
	if off < r.bufAt || off+int64(n) > r.bufAt+int64(len(r.buf)) {
		if err := r.fill(off, n); err != nil {
			return nil, err
		}
	}
	i := int(off - r.bufAt)
	return r.buf[i : i+n : i+n], nil
}

// fill reads ahead into the buffer, from off on, at least n bytes.
func (r *Reader) fill(off int64, n int) error {
	want := int(min(r.size-off, int64(max(n, readBytes))))
	var keep []byte
	if i := off - r.bufAt; i >= 0 && i < int64(len(r.buf)) {
		keep = r.buf[i:]
	}
	if cap(r.buf) < want || cap(r.buf) > keptBytes && want <= readBytes {
		r.buf = append(make([]byte, 0, want), keep...)
	} else {
		r.buf = r.buf[:copy(r.buf[:cap(r.buf)], keep)]
	}
	r.bufAt = off
	have := len(r.buf)
	if have >= want {
		return nil
	}
	m, err := r.src.ReadAt(r.buf[have:want], off+int64(have))
	r.buf = r.buf[:have+m]
	if have+m >= want {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the file is shorter than was said
	}
	return fmt.Errorf("read %s at offset %d: %w", r.o.File, off+int64(have), err)
}
