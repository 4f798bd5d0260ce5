package stream

import (
	"fmt"
	"iter"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of pairdb.move.v1.EncodedRecord, and of the records in the messages that bring and take
// them: ExportResponse, FollowResponse and IngestBatch have them in the same field, so they go from one
// stream to the next as they are. TestPartsAreThoseOfTheGeneratedCode compares all of them.
const (
	recordsField           = 1
	recordKey, recordValue = 1, 2
	ingestBatch            = 2 // of IngestRequest
	batchNumber            = 2 // of IngestBatch
)

// Records are records of nodes, encoded as the field of a message, one after the other. The zero value is
// empty. It is for one goroutine.
type Records struct {
	data []byte
	// buffer has data, from its first byte on; nil: nobody takes the memory of data back.
	buffer mem.Buffer
	count  int
	bytes  int64
}

// Len returns how many records there are.
func (r *Records) Len() int { return r.count }

// Bytes returns the bytes of all keys and values.
func (r *Records) Bytes() int64 { return r.bytes }

// All returns key and value of each record. They are valid as long as the records are.
func (r *Records) All() iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		for b := r.data; len(b) > 0; { // all of it was looked at before
			_, _, n := protowire.ConsumeField(b)
			key, value, _ := recordOf(b[:n])
			if !yield(key, value) {
				return
			}
			b = b[n:]
		}
	}
}

// Append adds a copy of a record to records that came from nowhere.
func (r *Records) Append(key, value []byte) {
	const tags = 2 // a byte for each, since the numbers are below 16
	r.data = protowire.AppendTag(r.data, recordsField, protowire.BytesType)
	r.data = protowire.AppendVarint(r.data, uint64(tags+protowire.SizeBytes(len(key))+protowire.SizeBytes(len(value))))
	r.data = protowire.AppendTag(r.data, recordKey, protowire.BytesType)
	r.data = protowire.AppendBytes(r.data, key)
	r.data = protowire.AppendTag(r.data, recordValue, protowire.BytesType)
	r.data = protowire.AppendBytes(r.data, value)
	r.note(key, value)
}

func (r *Records) note(key, value []byte) {
	r.count++
	r.bytes += int64(len(key) + len(value))
}

// recordOf reads an EncodedRecord with the tag of the field that it is in.
func recordOf(message []byte) (key, value []byte, err error) {
	_, _, n := protowire.ConsumeTag(message)
	b, m := protowire.ConsumeBytes(message[max(n, 0):])
	if n < 0 || m < 0 {
		return nil, nil, fmt.Errorf("a record: %w", protowire.ParseError(min(n, m)))
	}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		m := 0
		if n >= 0 {
			m = protowire.ConsumeFieldValue(number, kind, b[n:])
		}
		if n < 0 || m < 0 {
			return nil, nil, fmt.Errorf("a record: %w", protowire.ParseError(min(n, m)))
		}
		if kind == protowire.BytesType {
			switch field, _ := protowire.ConsumeBytes(b[n:]); number {
			case recordKey:
				key = field
			case recordValue:
				value = field
			}
		}
		b = b[n+m:]
	}
	return key, value, nil
}
