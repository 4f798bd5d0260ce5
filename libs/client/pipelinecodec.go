package client

import (
	"fmt"
	"sync"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// pipelineCodec leaves the messages of a pipeline as they are: they are encoded and decoded by hand,
// an operation at a time.
type pipelineCodec struct{}

var _ encoding.CodecV2 = pipelineCodec{}

// Name implements encoding.CodecV2: on the wire it is ordinary proto.
func (pipelineCodec) Name() string { return grpcproto.Name }

// Marshal implements encoding.CodecV2.
func (pipelineCodec) Marshal(v any) (mem.BufferSlice, error) {
	chunk, ok := v.(requestChunk)
	if !ok {
		return nil, fmt.Errorf("pipeline: can't send a %T", v)
	}
	return mem.BufferSlice{mem.NewBuffer(chunk.buf, requestMemory)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (pipelineCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*responseChunk)
	if !ok {
		return fmt.Errorf("pipeline: can't receive a %T", v)
	}
	m.buffer = data.MaterializeToBuffer(mem.DefaultBufferPool())
	m.data = m.buffer.ReadOnlyData()
	return nil
}

// responseChunk is a PipelineResponse as it came; data is valid until free.
type responseChunk struct {
	buffer mem.Buffer
	data   []byte
}

func (m *responseChunk) free() {
	m.buffer.Free()
	*m = responseChunk{}
}

// requestPool keeps the memory of requests; the transport gives back what it has sent.
type requestPool struct{ pool sync.Pool }

var requestMemory = &requestPool{sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}}

// Get implements mem.BufferPool.
func (p *requestPool) Get(n int) *[]byte {
	b := p.pool.Get().(*[]byte)
	if cap(*b) < n {
		*b = make([]byte, n)
	}
	*b = (*b)[:n]
	return b
}

// Put implements mem.BufferPool.
func (p *requestPool) Put(b *[]byte) {
	if cap(*b) > 4*pipelineMessageBytes {
		return // a large value must not stay for ever
	}
	*b = (*b)[:0]
	p.pool.Put(b)
}
