package compare_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/merkle"
	"github.com/pairdb/pairdb/libs/ring"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

// node is a side that keeps records in a map. It panics when it is asked for more than its contract
// allows.
type node struct {
	replicav1.ReplicaServiceClient // what is not used here panics
	name                           string
	// step is called before each call, message and acknowledgement, without the lock; its error is that
	// of the call.
	step func(what string) error
	// newer has KeyDigests tell records as they are now, and not those of the snapshot: both are allowed.
	newer bool
	// deaf acknowledges records and drops them.
	deaf bool

	mu      sync.Mutex
	records map[string][]byte
	counter uint64
	trees   map[uint64]*tree
	// inFlight counts streams that were opened and not read to their end.
	calls map[string]int
	// lie changes what is answered.
	lie func(m proto.Message)
}

type tree struct {
	shape  *merkle.Shape
	tree   *merkle.Tree
	what   *movev1.Selection
	before uint64
	// snapshot is what the node had.
	snapshot map[string][]byte
}

func newNode(name string) *node {
	return &node{
		name: name, records: map[string][]byte{}, trees: map[uint64]*tree{}, calls: map[string]int{},
		step: func(string) error { return nil }, lie: func(proto.Message) {},
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func check(ok bool, format string, args ...any) {
	if !ok {
		panic(fmt.Sprintf(format, args...))
	}
}

// write is a client's write: a value, or a tombstone for "".
func (n *node) write(key, value string, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.counter++
	var old causal.Record
	if b, ok := n.records[key]; ok {
		old = must(causal.Decode(b))
	}
	s := causal.Sibling{
		Clock: old.Clock(), Dot: causal.Dot{Node: n.name, Counter: max(n.counter, old.Clock().Get(n.name)+1)},
		Timestamp: causal.Timestamp(at), Value: []byte(value),
	}
	if value == "" {
		s.Tombstone, s.Value = true, nil
	}
	n.counter = s.Dot.Counter
	n.records[key] = must(causal.NewRecord([]causal.Sibling{s})).Encode(nil)
}

// blind is a write that has seen nothing: it conflicts with others.
func (n *node) blind(key, value string, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.counter++
	s := causal.Sibling{Dot: causal.Dot{Node: n.name, Counter: n.counter}, Timestamp: causal.Timestamp(at), Value: []byte(value)}
	n.join(key, must(causal.NewRecord([]causal.Sibling{s})).Encode(nil))
}

func (n *node) join(key string, value []byte) {
	if old, ok := n.records[key]; ok {
		value = must(causal.JoinEncoded(nil, value, old))
	}
	n.records[key] = bytes.Clone(value)
}

func (n *node) now() map[string][]byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.records)
}

func collected(value []byte, before uint64) []byte {
	if value == nil {
		return nil
	}
	out, _, left, err := causal.CollectEncoded(nil, value, before)
	if must(left, err) {
		return out
	}
	return nil
}

func digest(key string, value []byte, before uint64) []byte {
	c := collected(value, before)
	if c == nil {
		return nil
	}
	d := merkle.Of([]byte(key), c)
	return d[:]
}

func token(key string) uint64 {
	tenant, user, err := ikey.SplitEngineKey([]byte(key))
	return must(ring.TokenOf(nil, tenant, user), err)
}

func selected(what *movev1.Selection, key string) bool {
	return what.GetTenant() == "" || strings.HasPrefix(key, what.GetTenant()+"\x00")
}

func (n *node) call(what string) error {
	n.mu.Lock()
	n.calls[what]++
	n.mu.Unlock()
	return n.step(n.name + " " + what)
}

func (n *node) Digest(_ context.Context, q *replicav1.DigestRequest, _ ...grpc.CallOption) (*replicav1.DigestResponse, error) {
	if err := n.call("Digest"); err != nil {
		return nil, err
	}
	check(q.GetPeer().GetNodeId() != "", "nobody calls")
	check(int(q.GetLeavesPerRange())*max(len(q.GetWhat().GetHashRanges()), 1) <= 1<<20, "too many leaves")
	var ranges []ring.HashRange
	for _, r := range q.GetWhat().GetHashRanges() {
		ranges = append(ranges, ring.HashRange{Start: r.GetStart(), End: r.GetEnd()})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	shape := must(merkle.NewShape(ranges, int(q.GetLeavesPerRange())))
	t := &tree{
		shape: shape, tree: merkle.NewTree(shape), what: q.GetWhat(), before: q.GetCollectedBefore(), snapshot: maps.Clone(n.records),
	}
	a := &replicav1.DigestResponse{Tree: uint64(len(n.trees)) + 100, Sequence: n.counter}
	for k, v := range n.records {
		if d := digest(k, v, t.before); d != nil && selected(t.what, k) && t.tree.Add(token(k), merkle.Digest(d)) {
			a.Records++
		}
	}
	for _, d := range t.tree.Roots() {
		a.Roots = append(a.Roots, bytes.Clone(d[:]))
	}
	n.trees[a.GetTree()] = t
	n.lie(a)
	return a, nil
}

func (n *node) Leaves(_ context.Context, q *replicav1.LeavesRequest, _ ...grpc.CallOption) (*replicav1.LeavesResponse, error) {
	if err := n.call("Leaves"); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.trees[q.GetTree()]
	check(t.shape.LeavesPerRange()*len(q.GetRanges()) <= 262_144, "too many leaves")
	a := &replicav1.LeavesResponse{}
	for _, i := range q.GetRanges() {
		a.Digests = merkle.Append(a.GetDigests(), t.tree.Leaves(int(i))...)
	}
	n.lie(a)
	check(proto.Size(a) < 4<<20, "an answer of %d bytes", proto.Size(a))
	return a, nil
}

func (n *node) KeyDigests(ctx context.Context, q *replicav1.KeyDigestsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[replicav1.KeyDigestsResponse], error) {
	if err := n.call("KeyDigests"); err != nil {
		return nil, err
	}
	check(len(q.GetLeaves()) <= 65_536, "too many leaves")
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.trees[q.GetTree()]
	wanted := map[[2]int]bool{}
	for _, l := range q.GetLeaves() {
		wanted[[2]int{int(l.GetRange()), int(l.GetLeaf())}] = true
	}
	from := t.snapshot
	s := &stream[replicav1.KeyDigestsResponse]{ctx: ctx, node: n, what: "KeyDigests"}
	m := &replicav1.KeyDigestsResponse{}
	for _, k := range slices.Sorted(maps.Keys(from)) {
		i, leaf, ok := t.shape.Locate(token(k))
		if !ok || !wanted[[2]int{i, leaf}] || !selected(t.what, k) {
			continue
		}
		v := from[k]
		if n.newer {
			v = n.records[k]
		}
		m.Keys = append(m.Keys, &replicav1.KeyDigest{Key: []byte(k), Digest: digest(k, v, t.before)})
		if len(m.GetKeys()) == 7 { // an odd number: messages of both sides don't fall together
			s.messages, m = append(s.messages, m), &replicav1.KeyDigestsResponse{}
		}
	}
	s.messages = append(s.messages, m)
	return s, nil
}

func (n *node) CompareKeys(_ context.Context, q *replicav1.CompareKeysRequest, _ ...grpc.CallOption) (*replicav1.CompareKeysResponse, error) {
	if err := n.call("CompareKeys"); err != nil {
		return nil, err
	}
	check(len(q.GetKeys()) <= 1000 && len(q.GetKeys()) > 0, "%d keys", len(q.GetKeys()))
	check(proto.Size(q) < 4<<20, "a request of %d bytes", proto.Size(q))
	n.mu.Lock()
	defer n.mu.Unlock()
	a := &replicav1.CompareKeysResponse{}
	for _, k := range q.GetKeys() {
		a.Digests = append(a.Digests, digest(string(k), n.records[string(k)], q.GetCollectedBefore()))
	}
	n.lie(a)
	return a, nil
}

func (n *node) Fetch(ctx context.Context, q *replicav1.FetchRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[replicav1.FetchResponse], error) {
	if err := n.call("Fetch"); err != nil {
		return nil, err
	}
	check(len(q.GetKeys()) <= 10_000 && len(q.GetKeys()) > 0, "%d keys", len(q.GetKeys()))
	check(proto.Size(q) < 4<<20, "a request of %d bytes", proto.Size(q))
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &stream[replicav1.FetchResponse]{ctx: ctx, node: n, what: "Fetch"}
	m := &replicav1.FetchResponse{}
	for _, k := range q.GetKeys() {
		if v, ok := n.records[string(k)]; ok {
			m.Records = append(m.Records, &movev1.EncodedRecord{Key: k, Value: v})
		}
		if len(m.GetRecords()) == 5 {
			s.messages, m = append(s.messages, m), &replicav1.FetchResponse{}
		}
	}
	s.messages = append(s.messages, m)
	return s, nil
}

// stream is what a server streams.
type stream[M any] struct {
	grpc.ClientStream
	ctx      context.Context
	node     *node
	what     string
	messages []*M
}

func (s *stream[M]) Recv() (*M, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.node.step(s.node.name + " " + s.what + " Recv"); err != nil {
		return nil, err
	}
	if len(s.messages) == 0 {
		return nil, io.EOF
	}
	m := s.messages[0]
	s.messages = s.messages[1:]
	s.node.lie(any(m).(proto.Message))
	return m, nil
}

func (n *node) Ingest(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[replicav1.IngestRequest, replicav1.IngestResponse], error) {
	if err := n.call("Ingest"); err != nil {
		return nil, err
	}
	return &ingest{ctx: ctx, node: n, acks: make(chan uint64, 1000), ended: make(chan error, 1)}, nil
}

// ingest is a stream of records into a node.
type ingest struct {
	grpc.ClientStream
	ctx      context.Context
	node     *node
	started  bool
	number   uint64
	finished bool
	broken   bool
	acks     chan uint64
	ended    chan error
}

func (s *ingest) Send(m *replicav1.IngestRequest) error {
	if s.broken {
		return io.EOF
	}
	if err := s.node.step(s.node.name + " Ingest Send"); err != nil {
		s.broken = true
		s.ended <- err
		return io.EOF // as gRPC does: why is with Recv
	}
	switch p := m.GetPart().(type) {
	case *replicav1.IngestRequest_Start:
		check(!s.started && p.Start.GetRecordFormat() == 1 && p.Start.GetMoveId() != "" && p.Start.GetReadAtMs() > 0, "start %v", p.Start)
		s.started = true
	case *replicav1.IngestRequest_Batch:
		s.number++
		check(s.started && !s.finished && p.Batch.GetNumber() == s.number, "batch %d", p.Batch.GetNumber())
		check(proto.Size(m) < 64<<10 || len(p.Batch.GetRecords()) == 1, "a batch of %d bytes", proto.Size(m))
		s.node.mu.Lock()
		for _, r := range p.Batch.GetRecords() {
			if s.node.deaf {
				continue
			}
			s.node.join(string(r.GetKey()), r.GetValue())
		}
		s.node.mu.Unlock()
		s.acks <- s.number
	case *replicav1.IngestRequest_Finish:
		s.finished = true
	}
	return nil
}

func (s *ingest) CloseSend() error {
	check(s.finished, "closed before it was finished")
	close(s.acks)
	return nil
}

func (s *ingest) Recv() (*replicav1.IngestResponse, error) {
	select {
	case n, ok := <-s.acks:
		if !ok {
			return nil, io.EOF
		}
		if err := s.node.step(s.node.name + " Ingest Recv"); err != nil {
			return nil, err
		}
		m := &replicav1.IngestResponse{DurableNumber: n}
		s.node.lie(m)
		return m, nil
	case err := <-s.ended:
		return nil, err
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

var errFault = errors.New("connection lost")

// faultAt fails the step with a number, from 0 on, and tells whether it came to that.
type faultAt struct {
	mu    sync.Mutex
	at    int
	n     int
	fired bool
}

func (f *faultAt) step(string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	if f.n-1 == f.at {
		f.fired = true
		return errFault
	}
	return nil
}
