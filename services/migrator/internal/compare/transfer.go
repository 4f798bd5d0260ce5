package compare

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

const (
	// batchBytes and batchRecords bound an IngestBatch, which must stay below 64 KiB with its frame.
	batchBytes   = 48 << 10
	batchRecords = 512
)

// transfer reads the records of keys from one side and joins them into the other, and returns the keys
// that there were, once they are durable there.
func (r *run) transfer(ctx context.Context, from, to int, keys [][]byte) (there map[string]bool, err error) {
	there = map[string]bool{}
	if len(keys) == 0 {
		return there, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	readAt := r.Now().UnixMilli()
	source, err := r.fetch(ctx, from, keys)
	if err != nil {
		return nil, err
	}
	sink := &sink{run: r, side: r.side(to), readAt: readAt}
	defer func() {
		cancel()
		sink.wait()
	}()
	for _, k := range keys {
		value, err := source.of(k)
		if err != nil {
			return nil, err
		}
		if value == nil {
			continue
		}
		if err := sink.put(ctx, &movev1.EncodedRecord{Key: k, Value: value}); err != nil {
			return nil, fmt.Errorf("ingest into %s: %w", sink.side.Name, err)
		}
		there[string(k)] = true
	}
	if err := source.end(); err != nil {
		return nil, err
	}
	if err := sink.finish(ctx); err != nil {
		return nil, fmt.Errorf("ingest into %s: %w", sink.side.Name, err)
	}
	return there, nil
}

// records reads a stream of records of keys that were asked for, in their order; not all of them exist.
type records struct {
	name   string
	stream grpc.ServerStreamingClient[replicav1.FetchResponse]
	rest   []*movev1.EncodedRecord
	done   bool
}

func (r *run) fetch(ctx context.Context, i int, keys [][]byte) (*records, error) {
	s := r.side(i)
	stream, err := s.Client.Fetch(ctx, &replicav1.FetchRequest{Peer: r.Peer, Keys: keys})
	if err != nil {
		return nil, fmt.Errorf("fetch from %s: %w", s.Name, err)
	}
	return &records{name: s.Name, stream: stream}, nil
}

// of returns the record of a key, nil if there is none. Keys are asked for in the order of the request.
func (f *records) of(key []byte) ([]byte, error) {
	if err := f.fill(); err != nil || f.done {
		return nil, err
	}
	if !bytes.Equal(f.rest[0].GetKey(), key) {
		return nil, nil
	}
	value := f.rest[0].GetValue()
	f.rest = f.rest[1:]
	if len(value) == 0 {
		return nil, fmt.Errorf("fetch from %s: %w: an empty record", f.name, errMalformed)
	}
	return value, nil
}

func (f *records) fill() error {
	for len(f.rest) == 0 && !f.done {
		m, err := f.stream.Recv()
		if errors.Is(err, io.EOF) {
			f.done = true
			return nil
		}
		if err != nil {
			return fmt.Errorf("fetch from %s: %w", f.name, err)
		}
		f.rest = m.GetRecords()
	}
	return nil
}

// end reads the ends of streams: a record that is left was not asked for, or is out of order.
func (f *records) end(more ...*records) error {
	for _, f := range append(more, f) {
		if err := f.fill(); err != nil {
			return err
		}
		if !f.done {
			return fmt.Errorf("fetch from %s: %w: a record that was not asked for, or out of order", f.name, errMalformed)
		}
	}
	return nil
}

// sink joins records into a side. It opens its stream with the first record.
type sink struct {
	*run
	side   Side
	readAt int64

	stream grpc.BidiStreamingClient[replicav1.IngestRequest, replicav1.IngestResponse]
	batch  replicav1.IngestBatch
	bytes  int
	// acked is closed when no acknowledgement comes any more; durable and err are of then.
	acked   chan struct{}
	durable uint64
	err     error
}

// put sends a record, sooner or later.
func (s *sink) put(ctx context.Context, rec *movev1.EncodedRecord) error {
	size := len(rec.GetKey()) + len(rec.GetValue())
	if s.bytes > 0 && (s.bytes+size > batchBytes || len(s.batch.GetRecords()) >= batchRecords) {
		if err := s.flush(ctx); err != nil {
			return err
		}
	}
	s.batch.Records = append(s.batch.Records, rec)
	s.bytes += size
	return nil
}

func (s *sink) flush(ctx context.Context) error {
	if s.bytes == 0 {
		return nil
	}
	if err := s.Limit(ctx, s.bytes); err != nil {
		return err
	}
	if s.stream == nil {
		if err := s.open(ctx); err != nil {
			return err
		}
	}
	number := s.batch.Number + 1
	full := &replicav1.IngestBatch{Number: number, Records: s.batch.Records}
	if err := s.send(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Batch{Batch: full}}); err != nil {
		return err
	}
	s.result.SentBytes += int64(s.bytes)
	s.batch.Number, s.batch.Records, s.bytes = number, nil, 0
	return nil
}

func (s *sink) open(ctx context.Context) error {
	stream, err := s.side.Client.Ingest(ctx)
	if err != nil {
		return err
	}
	s.stream, s.acked = stream, make(chan struct{})
	go func() {
		defer close(s.acked)
		for {
			m, err := stream.Recv()
			if err != nil {
				s.err = err
				return
			}
			s.durable = max(s.durable, m.GetDurableNumber())
		}
	}()
	return s.send(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Start{Start: &replicav1.IngestStart{
		Peer: s.Peer, MoveId: s.MoveID, RecordFormat: 1, ReadAtMs: s.readAt,
	}}})
}

// send sends a message; why the other side ended the stream is with the acknowledgements.
func (s *sink) send(m *replicav1.IngestRequest) error {
	err := s.stream.Send(m)
	if !errors.Is(err, io.EOF) {
		return err
	}
	<-s.acked
	if errors.Is(s.err, io.EOF) {
		return fmt.Errorf("%w: it ended before everything was sent", errMalformed)
	}
	return s.err
}

// finish sends what is left and waits until all is durable.
func (s *sink) finish(ctx context.Context) error {
	if err := s.flush(ctx); err != nil {
		return err
	}
	if s.stream == nil {
		return nil
	}
	if err := s.send(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Finish{Finish: true}}); err != nil {
		return err
	}
	if err := s.stream.CloseSend(); err != nil {
		return err
	}
	<-s.acked
	if !errors.Is(s.err, io.EOF) {
		return s.err
	}
	if s.durable < s.batch.GetNumber() {
		return fmt.Errorf("%w: %d of %d batches are durable at its end", errMalformed, s.durable, s.batch.GetNumber())
	}
	return nil
}

// wait waits for the reader of acknowledgements; the context of the stream has ended.
func (s *sink) wait() {
	if s.acked != nil {
		<-s.acked
	}
}
