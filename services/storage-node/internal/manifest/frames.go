package manifest

import "github.com/pairdb/pairdb/libs/record"

// frames reads the frames behind the header of a manifest file.
type frames struct{ r *record.Reader }

func newFrames(b []byte, number uint64) *frames {
	return &frames{record.NewReader(b, uint32(number))}
}

func (f *frames) next() (frameType uint8, payload []byte, err error) {
	h, payload, err := f.r.Next()
	return h.Type, payload, err
}

// offset is where the next frame begins, from the end of the header.
func (f *frames) offset() int64 { return f.r.Offset() }
