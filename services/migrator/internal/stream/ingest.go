package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

// recordFormat is the format of records that this binary carries (docs/formats/record.md).
const recordFormat = 1

// Ingest is a Sink on ReplicaService.Ingest.
type Ingest struct {
	o      Options
	ctx    context.Context // of the stream
	cancel context.CancelCauseFunc
	stream grpc.BidiStreamingClient[replicav1.IngestRequest, replicav1.IngestResponse]
	watch  *time.Timer   // breaks the stream off when it stalls
	ended  chan struct{} // closed when the receiver has ended

	number uint64 // of the last batch; Send's alone

	mu       sync.Mutex
	inFlight []part        // guarded by mu; in order
	bytes    int64         // guarded by mu; of inFlight
	finished bool          // guarded by mu
	err      error         // guarded by mu; why the receiver has ended
	changed  chan struct{} // guarded by mu; closed at the next change
}

// part is what was sent and not acknowledged, or a mark that waits for the part before it.
type part struct {
	number uint64
	mark   Mark
}

// OpenIngest opens a stream. It ends with ctx, Finish or Close; call Close in any case.
func OpenIngest(ctx context.Context, client replicav1.ReplicaServiceClient, o Options) (*Ingest, error) {
	o = o.withDefaults()
	ctx, cancel := context.WithCancelCause(ctx)
	s := &Ingest{o: o, ctx: ctx, cancel: cancel, ended: make(chan struct{}), changed: make(chan struct{})}
	s.watch = time.AfterFunc(o.Stall, func() { cancel(fmt.Errorf("%w for %s", ErrStalled, o.Stall)) })
	stream, err := client.Ingest(ctx, Encoded)
	if err == nil {
		err = stream.Send(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Start{Start: &replicav1.IngestStart{
			Peer:   &replicav1.Peer{ClusterId: o.ClusterID, NodeId: o.NodeID},
			MoveId: o.MoveID, RecordFormat: recordFormat, ReadAtMs: o.ReadAt.UnixMilli(), Sorted: o.Sorted,
		}}})
		if errors.Is(err, io.EOF) {
			_, err = stream.Recv() // the reason
		}
	}
	s.watch.Stop()
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, ErrStalled) {
			err = cause
		}
		cancel(nil)
		return nil, fmt.Errorf("ingest: %w", err)
	}
	s.stream = stream
	go s.receive()
	return s, nil
}

// Send hands over a part.
func (s *Ingest) Send(ctx context.Context, records *Records, m Mark) error {
	size := records.Bytes()
	m.Records, m.Bytes = int64(records.Len()), size
	if records.Len() == 0 {
		return s.note(m)
	}
	if err := waitAll(ctx, s.o.Limits, int(size), s.o.Waited); err != nil {
		return err
	}
	if err := s.room(ctx, size); err != nil {
		return err
	}
	s.number++
	s.mu.Lock()
	if len(s.inFlight) == 0 {
		s.watch.Reset(s.o.Stall)
	}
	s.inFlight = append(s.inFlight, part{number: s.number, mark: m})
	s.bytes += size
	s.mu.Unlock()
	err := s.stream.SendMsg(&batch{records: records, number: s.number})
	return s.sent(err)
}

// sent turns the error of a call of Send on the stream into the reason that the receiver has.
func (s *Ingest) sent(err error) error {
	if err == nil {
		return nil
	}
	if !errors.Is(err, io.EOF) {
		s.cancel(nil)
	}
	<-s.ended
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// note takes a mark without records: it counts when all before it does.
func (s *Ingest) note(m Mark) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if n := len(s.inFlight); n > 0 {
		last := &s.inFlight[n-1].mark
		m.Records, m.Bytes = last.Records, last.Bytes
		*last = m
		return nil
	}
	s.o.Acked(m)
	return nil
}

// room waits until size more bytes fit into the window.
func (s *Ingest) room(ctx context.Context, size int64) error {
	for {
		s.mu.Lock()
		err, changed := s.err, s.changed
		fits := s.bytes == 0 || s.bytes+size <= s.o.WindowBytes
		s.mu.Unlock()
		switch {
		case err != nil:
			return err
		case fits:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// receive takes acknowledgements until the stream ends.
func (s *Ingest) receive() {
	defer close(s.ended)
	for {
		r, err := s.stream.Recv()
		if err == nil {
			err = s.acknowledge(r.GetDurableNumber())
		}
		if err == nil {
			continue
		}
		s.watch.Stop()
		s.mu.Lock()
		s.err = s.reason(err)
		s.signalLocked()
		s.mu.Unlock()
		s.cancel(nil)
		return
	}
}

// reason says why the stream has ended; mu is held.
func (s *Ingest) reason(err error) error {
	if cause := context.Cause(s.ctx); cause != nil && s.ctx.Err() != nil && !errors.Is(cause, context.Canceled) {
		return fmt.Errorf("ingest: %w", cause)
	}
	if errors.Is(err, io.EOF) {
		if s.finished && len(s.inFlight) == 0 {
			return io.EOF
		}
		return fmt.Errorf("ingest: %w with %d batches not acknowledged", ErrBroken, len(s.inFlight))
	}
	return fmt.Errorf("ingest: %w", err)
}

// acknowledge notes that all batches up to a number are durable.
func (s *Ingest) acknowledge(number uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, sum := 0, Mark{}
	for ; n < len(s.inFlight) && s.inFlight[n].number <= number; n++ {
		m := s.inFlight[n].mark
		s.bytes -= m.Bytes
		m.Records, m.Bytes = m.Records+sum.Records, m.Bytes+sum.Bytes
		sum = m
	}
	if n == 0 {
		return nil
	}
	s.inFlight = append(s.inFlight[:0], s.inFlight[n:]...)
	if len(s.inFlight) == 0 && !s.finished {
		s.watch.Stop()
	} else {
		s.watch.Reset(s.o.Stall)
	}
	s.signalLocked()
	// Under the lock: a mark without records must not overtake.
	s.o.Acked(sum)
	return nil
}

func (s *Ingest) signalLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Finish waits until everything is acknowledged and ends the stream.
func (s *Ingest) Finish(ctx context.Context) error {
	s.mu.Lock()
	s.finished = true
	s.watch.Reset(s.o.Stall)
	s.mu.Unlock()
	err := s.stream.Send(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Finish{Finish: true}})
	if err == nil {
		err = s.stream.CloseSend()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.cancel(nil)
	}
	select {
	case <-s.ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.err, io.EOF) {
		return nil
	}
	return s.err
}

// Ended is closed when the stream is over.
func (s *Ingest) Ended() <-chan struct{} { return s.ended }

// Err returns why the stream is over; nil while it is not.
func (s *Ingest) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Unacknowledged returns how many bytes were sent and not acknowledged.
func (s *Ingest) Unacknowledged() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// Close breaks the stream off.
func (s *Ingest) Close() {
	s.cancel(nil)
	<-s.ended
	s.watch.Stop()
}
