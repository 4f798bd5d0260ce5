package client_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// memoryNode keeps one tenant in memory, with the semantics of the wire as far as one node with plain
// clients has them: each write is a dot of the actor "n", so a clock is one counter.
type memoryNode struct {
	storagev1.UnimplementedStorageServiceServer

	// before and after are asked around each write; an error is the answer. After it the write is made
	// and its answer lost.
	before, after func(method string) error

	mu      sync.Mutex
	counter uint64
	keys    map[string][]*datav1.Sibling
	replies map[string]reply // by idempotency key
	changes []*storagev1.Change
	changed chan struct{} // closed with the next change
	writes  int           // that were applied
}

type reply struct {
	request  []byte
	response *storagev1.WriteResponse
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func newMemoryNode() *memoryNode {
	none := func(string) error { return nil }
	return &memoryNode{before: none, after: none, keys: map[string][]*datav1.Sibling{}, replies: map[string]reply{}, changed: make(chan struct{})}
}

func refusal(code codes.Code, reason, message string, details ...protoadapt.MessageV1) error {
	details = append([]protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: "pairdb", Reason: reason}}, details...)
	s, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return s.Err()
}

func clockOf(n uint64) *datav1.VectorClock {
	if n == 0 {
		return nil
	}
	return &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "n", Counter: n}}}
}

func counterOf(c *datav1.VectorClock) uint64 {
	var n uint64
	for _, e := range c.GetEntries() {
		n = max(n, e.Counter)
	}
	return n
}

func (m *memoryNode) read(key string) *storagev1.ReadResponse {
	r := &storagev1.ReadResponse{}
	var seen uint64
	for _, s := range m.keys[key] {
		seen = max(seen, s.Dot.Counter)
		if !s.Tombstone && !r.Found {
			r.Found, r.Value, r.Timestamp = true, s.Value, s.Timestamp
		}
	}
	if all := m.keys[key]; len(all) > 1 || len(all) == 1 && all[0].Tombstone {
		r.Siblings = all
	}
	r.Clock = clockOf(seen)
	return r
}

// put is one write; the lock is held.
func (m *memoryNode) put(key string, s *datav1.Sibling, context *datav1.VectorClock, when *storagev1.Condition) (*storagev1.WriteResponse, error) {
	now := m.read(key)
	holds := true
	switch c := when.GetWhen().(type) {
	case *storagev1.Condition_Absent:
		holds = !now.Found
	case *storagev1.Condition_Clock:
		holds = counterOf(c.Clock) == counterOf(now.Clock)
	case *storagev1.Condition_ValueSha256:
		sum := sha256.Sum256(now.Value)
		holds = now.Found && bytes.Equal(c.ValueSha256, sum[:])
	}
	if !holds {
		var details []protoadapt.MessageV1
		if now.Clock != nil {
			details = append(details, protoadapt.MessageV1Of(now.Clock))
		}
		return nil, refusal(codes.FailedPrecondition, "CONDITION_FAILED", "the condition does not hold", details...)
	}
	if context == nil {
		context = now.Clock
	}
	m.counter++
	s.Dot, s.Timestamp = &datav1.ClockEntry{NodeId: "n", Counter: m.counter}, 1_700_000_000_000<<16+m.counter
	kept := slices.DeleteFunc(slices.Clone(m.keys[key]), func(old *datav1.Sibling) bool { return old.Dot.Counter <= counterOf(context) })
	m.keys[key] = append([]*datav1.Sibling{s}, kept...)
	m.writes++
	m.changes = append(m.changes, &storagev1.Change{
		Sequence: m.counter, Change: &storagev1.Change_Record{Record: &datav1.Record{Key: key, Siblings: m.keys[key]}},
	})
	close(m.changed)
	m.changed = make(chan struct{})
	r := &storagev1.WriteResponse{Outcome: storagev1.Outcome_OUTCOME_APPLIED, Clock: clockOf(m.counter)}
	for _, s := range m.keys[key] {
		if !s.Tombstone {
			r.Siblings++
		}
	}
	if len(kept) > 0 {
		r.Outcome = storagev1.Outcome_OUTCOME_SIBLING
	}
	return r, nil
}

// single is a write of its own call, with an idempotency key or without.
func (m *memoryNode) single(method, name string, request proto.Message, write func() (*storagev1.WriteResponse, error)) (*storagev1.WriteResponse, error) {
	if err := m.before(method); err != nil {
		return nil, err
	}
	r, err := func() (*storagev1.WriteResponse, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(request)
		if err != nil {
			return nil, err
		}
		if old, ok := m.replies[name]; ok && name != "" {
			if !bytes.Equal(old.request, encoded) {
				return nil, refusal(codes.FailedPrecondition, "IDEMPOTENCY_KEY_REUSED", "another request had this idempotency key")
			}
			again := proto.Clone(old.response).(*storagev1.WriteResponse)
			again.Replayed = true
			return again, nil
		}
		r, err := write()
		if err == nil {
			m.replies[name] = reply{encoded, r}
		}
		return r, err
	}()
	if lost := m.after(method); lost != nil {
		return nil, lost
	}
	return r, err
}

func (m *memoryNode) Write(_ context.Context, r *storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
	return m.single("write", r.IdempotencyKey, r, func() (*storagev1.WriteResponse, error) {
		return m.put(r.Key, &datav1.Sibling{Value: r.Value}, r.GetContext(), r.Condition)
	})
}

func (m *memoryNode) Delete(_ context.Context, r *storagev1.DeleteRequest) (*storagev1.DeleteResponse, error) {
	w, err := m.single("delete", r.IdempotencyKey, r, func() (*storagev1.WriteResponse, error) {
		return m.put(r.Key, &datav1.Sibling{Tombstone: true}, r.GetContext(), r.Condition)
	})
	if err != nil {
		return nil, err
	}
	return &storagev1.DeleteResponse{Outcome: w.Outcome, Clock: w.Clock, Siblings: w.Siblings, Replayed: w.Replayed}, nil
}

func (m *memoryNode) Read(_ context.Context, r *storagev1.ReadRequest) (*storagev1.ReadResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.read(r.Key), nil
}

func itemOf(err error) *storagev1.ItemError {
	s := status.Convert(err)
	return &storagev1.ItemError{Code: int32(s.Code()), Message: s.Message(), Reason: s.Details()[0].(*errdetails.ErrorInfo).Reason}
}

func (m *memoryNode) item(key string, put *storagev1.PutOp, remove *storagev1.DeleteOp) (*storagev1.WriteResponse, error) {
	if len(key) > 1024 {
		return nil, refusal(codes.InvalidArgument, "INVALID_ARGUMENT_KEY", fmt.Sprintf("key has %d bytes, 1 to 1024 allowed", len(key)))
	}
	if put != nil {
		return m.put(key, &datav1.Sibling{Value: put.Value}, put.GetContext(), put.Condition)
	}
	return m.put(key, &datav1.Sibling{Tombstone: true}, remove.GetContext(), remove.GetCondition())
}

func (m *memoryNode) BatchWrite(_ context.Context, r *storagev1.BatchWriteRequest) (*storagev1.BatchWriteResponse, error) {
	if err := m.before("batch"); err != nil {
		return nil, err
	}
	resp := &storagev1.BatchWriteResponse{}
	m.mu.Lock()
	for _, op := range r.Ops {
		w, err := m.item(op.Key, op.GetPut(), op.GetDelete())
		result := &storagev1.BatchWriteResult{Outcome: w.GetOutcome(), Clock: w.GetClock()}
		if err != nil {
			result.Error = itemOf(err)
		}
		if r.OmitClocks {
			result.Clock = nil
		}
		resp.Results = append(resp.Results, result)
	}
	m.mu.Unlock()
	return resp, m.after("batch")
}

func (m *memoryNode) BatchRead(_ context.Context, r *storagev1.BatchReadRequest) (*storagev1.BatchReadResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	resp := &storagev1.BatchReadResponse{}
	for _, k := range r.Keys {
		resp.Results = append(resp.Results, &storagev1.BatchReadResult{Response: m.read(k)})
	}
	return resp, nil
}

// records returns the live records of a range, in order.
func (m *memoryNode) records(r *datav1.KeyRange, after string) []*datav1.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*datav1.Record
	for k, siblings := range m.keys {
		if inRange(k, r) && k > after && m.read(k).Found {
			all = append(all, &datav1.Record{Key: k, Siblings: siblings})
		}
	}
	slices.SortFunc(all, func(a, b *datav1.Record) int { return cmp.Compare(a.Key, b.Key) })
	return all
}

func inRange(key string, r *datav1.KeyRange) bool {
	return key >= r.GetStart() && (r.GetEnd() == "" || key < r.GetEnd())
}

func (m *memoryNode) GetKeyRange(_ context.Context, r *storagev1.GetKeyRangeRequest) (*storagev1.GetKeyRangeResponse, error) {
	resp := &storagev1.GetKeyRangeResponse{}
	all := m.records(r.Range, r.PageToken)
	for _, rec := range all[:min(len(all), 3)] { // a node may send fewer than it is asked for
		resp.Keys = append(resp.Keys, &storagev1.KeyEntry{Key: rec.Key})
		resp.NextPageToken = rec.Key
	}
	if len(all) <= 3 {
		resp.NextPageToken = ""
	}
	return resp, nil
}

func (m *memoryNode) StreamKeys(r *storagev1.StreamKeysRequest, s grpc.ServerStreamingServer[storagev1.StreamKeysResponse]) error {
	m.mu.Lock()
	sequence := m.counter
	m.mu.Unlock()
	for _, rec := range m.records(r.GetRange(), r.Cursor) {
		if err := s.Send(&storagev1.StreamKeysResponse{Records: []*datav1.Record{rec}, Cursor: rec.Key, Sequence: sequence}); err != nil {
			return err
		}
	}
	return s.Send(&storagev1.StreamKeysResponse{Sequence: sequence})
}

func (m *memoryNode) Watch(r *storagev1.WatchRequest, s grpc.ServerStreamingServer[storagev1.WatchResponse]) error {
	m.mu.Lock()
	after := r.AfterSequence
	if after == 0 {
		after = m.counter
	}
	m.mu.Unlock()
	if err := s.Send(&storagev1.WatchResponse{Sequence: after}); err != nil {
		return err
	}
	for {
		m.mu.Lock()
		msg, changed := &storagev1.WatchResponse{Sequence: m.counter}, m.changed
		for _, c := range m.changes {
			if c.Sequence <= after || !inRange(c.GetRecord().GetKey(), r.Range) {
				continue
			}
			if msg.Changes = append(msg.Changes, c); len(msg.Changes) == 2 { // there are many messages this way
				msg.Sequence = c.Sequence
				changed = closed
				break
			}
		}
		m.mu.Unlock()
		if msg.Sequence > after {
			if err := s.Send(msg); err != nil {
				return err
			}
			after = msg.Sequence
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

func (m *memoryNode) Pipeline(s pipeStream) error {
	for {
		msg, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp := &storagev1.PipelineResponse{}
		m.mu.Lock()
		for _, op := range msg.Ops {
			result := &storagev1.PipelineResult{Tag: op.Tag}
			if op.GetRead() != nil {
				result.Result = &storagev1.PipelineResult_Read{Read: m.read(op.Key)}
			} else if w, err := m.item(op.Key, op.GetPut(), op.GetDelete()); err != nil {
				result.Result = &storagev1.PipelineResult_Error{Error: itemOf(err)}
			} else {
				result.Result = &storagev1.PipelineResult_Write{Write: w}
			}
			resp.Results = append(resp.Results, result)
		}
		m.mu.Unlock()
		if err := s.Send(resp); err != nil {
			return err
		}
	}
}

// addr is where the examples find a node: this one in memory, or the real one of PAIRDB_TEST_ADDR.
var addr = os.Getenv("PAIRDB_TEST_ADDR")

func TestMain(m *testing.M) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	if addr == "" {
		addr = l.Addr().String()
	}
	s := grpc.NewServer()
	storagev1.RegisterStorageServiceServer(s, newMemoryNode())
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	code := m.Run()
	s.Stop()
	if err := <-served; err != nil {
		panic(err)
	}
	os.Exit(code)
}
