package server

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/pairdb/pairdb/services/storage-node/internal/replica"
)

// This file reads and writes the messages that carry records by hand: the generated code allocates three
// times a record, which costs more than to look at it. TestReplicaMessagesAreThoseOfTheGeneratedCode
// compares both.

// Field numbers.
const (
	recordKey, recordValue                      = 1, 2
	exportRecords, exportCursor, exportSequence = 1, 2, 3
	exportRemaining, exportFinished             = 4, 5
	followRecords, followSequence, followNewest = 1, 2, 3
	followAt                                    = 4
	fetchRecords                                = 1
	ingestStart, ingestBatch, ingestFinish      = 1, 2, 3
	batchRecords, batchNumber                   = 1, 2
	maxRecordHead, maxMessageHead               = 3 * (1 + 5), 64
)

// recordBatch is a message of a stream that comes in. Records alias the message.
type recordBatch struct {
	records []replica.Record
	number  uint64
	finish  bool
}

// parse reads an IngestRequest with a batch or the end.
func (p *recordBatch) parse(message []byte) error {
	clear(p.records)
	p.records, p.number, p.finish = p.records[:0], 0, false
	some := false
	for b := message; len(b) > 0; {
		number, kind, value, n := consumeField(b)
		if n < 0 {
			return fmt.Errorf("%w: invalid field", errMalformed)
		}
		b = b[n:]
		switch {
		case number == ingestBatch && kind == protowire.BytesType:
			some = true
			if err := p.parseBatch(value); err != nil {
				return err
			}
		case number == ingestFinish && kind == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(value)
			some, p.finish = true, v != 0
		}
	}
	if !some {
		return fmt.Errorf("%w: a message of a stream of records has a batch or ends it", errMalformed)
	}
	return nil
}

func (p *recordBatch) parseBatch(b []byte) error {
	for len(b) > 0 {
		number, kind, value, n := consumeField(b)
		if n < 0 {
			return fmt.Errorf("%w: invalid field", errMalformed)
		}
		b = b[n:]
		switch {
		case number == batchRecords && kind == protowire.BytesType:
			rec, err := parseRecord(value)
			if err != nil {
				return err
			}
			p.records = append(p.records, rec)
		case number == batchNumber && kind == protowire.VarintType:
			p.number, _ = protowire.ConsumeVarint(value)
		}
	}
	return nil
}

func parseRecord(b []byte) (rec replica.Record, err error) {
	for len(b) > 0 {
		number, kind, value, n := consumeField(b)
		if n < 0 {
			return rec, fmt.Errorf("%w: invalid field", errMalformed)
		}
		b = b[n:]
		switch {
		case number == recordKey && kind == protowire.BytesType:
			rec.Key = value
		case number == recordValue && kind == protowire.BytesType:
			rec.Value = value
		}
	}
	return rec, nil
}

// encodeExported encodes an ExportResponse.
func encodeExported(c *replica.Chunk) answers {
	out := newRecords(c.Records, len(c.Cursor))
	b := appendRecords(*out.buf, exportRecords, c.Records)
	if len(c.Cursor) > 0 {
		b = protowire.AppendTag(b, exportCursor, protowire.BytesType)
		b = protowire.AppendBytes(b, c.Cursor)
	}
	b = appendUint(b, exportSequence, c.Sequence)
	b = appendUint(b, exportRemaining, uint64(c.Remaining))
	if c.Finished {
		b = appendUint(b, exportFinished, 1)
	}
	*out.buf = b
	return out
}

// encodeFollowed encodes a FollowResponse.
func encodeFollowed(c *replica.Changes) answers {
	out := newRecords(c.Records, 0)
	b := appendRecords(*out.buf, followRecords, c.Records)
	b = appendUint(b, followSequence, c.Sequence)
	b = appendUint(b, followNewest, c.Newest)
	*out.buf = appendUint(b, followAt, uint64(c.AtMillis))
	return out
}

// encodeFetched encodes a FetchResponse.
func encodeFetched(records []replica.Record) answers {
	out := newRecords(records, 0)
	*out.buf = appendRecords(*out.buf, fetchRecords, records)
	return out
}

// newRecords returns room for records and more bytes beside them.
func newRecords(records []replica.Record, more int) answers {
	size := maxMessageHead + more
	for i := range records {
		size += len(records[i].Key) + len(records[i].Value) + maxRecordHead
	}
	buf := answersMemory.Get(size)
	*buf = (*buf)[:0]
	return answers{buf: buf}
}

func appendRecords(b []byte, field protowire.Number, records []replica.Record) []byte {
	for i := range records {
		key, value := records[i].Key, records[i].Value
		b = protowire.AppendTag(b, field, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(2+protowire.SizeBytes(len(key))+protowire.SizeBytes(len(value))))
		b = append(b, recordKey<<3|byte(protowire.BytesType))
		b = protowire.AppendBytes(b, key)
		b = append(b, recordValue<<3|byte(protowire.BytesType))
		b = protowire.AppendBytes(b, value)
	}
	return b
}

// sendEncoded is sender.send for a message that is encoded already; the transport takes its memory.
func sendEncoded(stream grpc.ServerStream, limit time.Duration, m answers) error {
	return withinStall(stream.Context(), limit, func() error { return stream.SendMsg(m) })
}

// withinStall returns when send does, which the transport lets happen as far as the reader's window goes.
// After it returned errSlowReader the handler must end.
func withinStall(ctx context.Context, limit time.Duration, send func() error) error {
	sent := make(chan error, 1)
	go func() { sent <- send() }() // ends with the stream, at the latest
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-sent:
		return err
	case <-ctx.Done(): // also of a node that stops, which the transport knows nothing of
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("%w: no message was taken for %s; resume after the last one", errSlowReader, limit)
	}
}
