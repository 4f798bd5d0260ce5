package move

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/causal"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/stream"
)

// refused is an error as nodes make them.
func refused(code codes.Code, reason, format string, args ...any) error {
	st, err := status.New(code, fmt.Sprintf(format, args...)).WithDetails(&errdetails.ErrorInfo{Domain: "pairdb", Reason: reason})
	if err != nil {
		panic(err)
	}
	return st.Err()
}

// records are what a fake node holds. The zero value is empty.
type records struct {
	mu   sync.Mutex
	m    map[string][]byte // guarded by mu
	next uint64            // guarded by mu; dots
}

func (s *records) join(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.joinLocked(key, value)
}

func (s *records) joinLocked(key, value []byte) error {
	if s.m == nil {
		s.m = map[string][]byte{}
	}
	old, ok := s.m[string(key)]
	if !ok {
		old = value
	}
	joined, err := causal.JoinEncoded(nil, value, old)
	if err == nil {
		s.m[string(key)] = joined
	}
	return err
}

func (s *records) get(key string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[key]
}

func (s *records) all() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.m)
}

// lacks returns a key of which another node has not all that this one has, or "".
func (s *records) lacks(other *records) string {
	for k, v := range s.all() {
		if ok, err := contains(other.get(k), v); err != nil || !ok {
			return k
		}
	}
	return ""
}

// replicas are the calls of ReplicaService that both sides have.
type replicas struct {
	replicav1.UnimplementedReplicaServiceServer
	records
	dropped map[string]bool // tenants, told by Tenants
}

func (s *replicas) CompareKeys(_ context.Context, r *replicav1.CompareKeysRequest) (*replicav1.CompareKeysResponse, error) {
	a := &replicav1.CompareKeysResponse{}
	for _, k := range r.GetKeys() {
		var digest []byte
		if v := s.get(string(k)); v != nil {
			sum := sha256.Sum256(v)
			digest = sum[:16]
		}
		a.Digests = append(a.Digests, digest)
	}
	return a, nil
}

func (s *replicas) Fetch(r *replicav1.FetchRequest, out grpc.ServerStreamingServer[replicav1.FetchResponse]) error {
	for _, k := range r.GetKeys() {
		if v := s.get(string(k)); v != nil {
			if err := out.Send(&replicav1.FetchResponse{Records: []*movev1.EncodedRecord{{Key: k, Value: v}}}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *replicas) Tenants(_ context.Context, r *replicav1.TenantsRequest) (*replicav1.TenantsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dropped == nil {
		s.dropped = map[string]bool{}
	}
	for _, t := range r.GetTenants() {
		s.dropped[string(t.GetKey())] = true
	}
	a := &replicav1.TenantsResponse{}
	for t := range s.dropped {
		a.Tenants = append(a.Tenants, &movev1.EncodedRecord{Key: []byte(t)})
	}
	return a, nil
}

// change is an entry of a fake log.
type change struct {
	seq        uint64
	key, value []byte
}

// source is the node that has the data. It keeps the rules of moves as a node does.
type source struct {
	migrationv1.UnimplementedMigrationServiceServer
	replicas
	t *testing.T

	mv      *movev1.Move // guarded by mu
	log     []change     // guarded by mu
	seq     uint64       // guarded by mu
	fenced  bool         // guarded by mu
	given   bool         // guarded by mu
	pinned  uint64       // guarded by mu
	broken  bool         // guarded by mu; the pin
	changed chan struct{}
	target  *destination
	size    int // records of a message
}

func (s *source) signalLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// write is a write of a client: acknowledged, or refused.
func (s *source) write(key, value string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.given:
		return refused(codes.FailedPrecondition, "NOT_OWNER", "given")
	case s.fenced:
		return refused(codes.Unavailable, "RANGE_MOVING", "fenced")
	}
	k := []byte("t\x00" + key)
	var clock causal.Clock
	if s.next > 0 {
		clock = causal.Clock{{Node: "source", Counter: s.next}}
	}
	s.next++
	record := causal.Record{Siblings: []causal.Sibling{{
		Clock: clock, Dot: causal.Dot{Node: "source", Counter: s.next}, Value: []byte(value), Timestamp: causal.Timestamp(time.Now()),
	}}}
	encoded := record.Encode(nil)
	require.NoError(s.t, s.joinLocked(k, encoded))
	s.seq++
	s.log = append(s.log, change{s.seq, k, encoded})
	s.signalLocked()
	return nil
}

// alter changes the move as the node itself or an operator would.
func (s *source) alter(f func(m *movev1.Move)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alterLocked(f)
}

func (s *source) alterLocked(f func(m *movev1.Move)) {
	m := proto.CloneOf(s.mv)
	f(m)
	m.Version++
	m.UpdatedAtMs = time.Now().UnixMilli()
	s.mv = m
	s.signalLocked()
}

func (s *source) current() *movev1.Move {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mv
}

// cancel is AdminService.CancelMove.
func (s *source) cancel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch st := s.mv.GetState(); {
	case st < movev1.State_STATE_FENCED:
		s.alterLocked(func(m *movev1.Move) { m.State = movev1.State_STATE_CANCELLED })
	case st == movev1.State_STATE_FENCED:
		s.alterLocked(func(m *movev1.Move) { m.Cancelling = true })
	}
}

func (s *source) Advance(_ context.Context, r *migrationv1.AdvanceRequest) (*migrationv1.AdvanceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.mv
	if r.GetVersion() != m.GetVersion() {
		return nil, refused(codes.Aborted, reasonMoveChanged, "version %d, not %d", m.GetVersion(), r.GetVersion())
	}
	if m.GetState() == movev1.State_STATE_RELEASED || m.GetState() == movev1.State_STATE_CANCELLED {
		return nil, refused(codes.FailedPrecondition, reasonMoveState, "over")
	}
	to := cmp.Or(r.GetState(), m.GetState())
	if !allowed(m, to) {
		return nil, refused(codes.FailedPrecondition, reasonMoveState, "%s after %s", to, m.GetState())
	}
	if r.CopyCursor != nil && (m.GetState() < movev1.State_STATE_PINNED || m.GetState() > movev1.State_STATE_TAILING) {
		return nil, refused(codes.FailedPrecondition, reasonMoveState, "a cursor in %s", m.GetState())
	}
	durable := to != m.GetState() || r.GetReason() != "" && r.GetReason() != m.GetReason() || r.CopyCursor != nil ||
		r.GetTailSequence() > m.GetTailSequence() || r.GetVerified() || r.GetEpoch() != 0 && r.GetEpoch() != m.GetEpoch()
	if !durable {
		m = proto.CloneOf(m)
		m.Progress = r.GetProgress()
		s.mv = m
		return &migrationv1.AdvanceResponse{Move: m}, nil
	}
	if to == movev1.State_STATE_COMMITTED && m.GetVerifiedAtMs() == 0 && !r.GetVerified() && !strings.HasPrefix(r.GetReason(), "not verified: ") {
		return nil, refused(codes.FailedPrecondition, reasonMoveState, "not verified")
	}
	if to == movev1.State_STATE_ACCEPTED && max(r.GetTailSequence(), m.GetTailSequence()) < m.GetFenceSequence() {
		return nil, refused(codes.FailedPrecondition, reasonMoveState, "not all is there")
	}
	s.alterLocked(func(m *movev1.Move) {
		if to == movev1.State_STATE_FAILED {
			m.ResumeState = m.GetState()
		}
		m.State, m.Reason = to, r.GetReason()
		if r.CopyCursor != nil {
			m.CopyCursor = r.GetCopyCursor()
		}
		m.TailSequence = max(m.TailSequence, r.GetTailSequence())
		if r.GetVerified() {
			m.VerifiedAtMs = time.Now().UnixMilli()
		}
		m.Epoch = cmp.Or(r.GetEpoch(), m.Epoch)
		m.Progress = r.GetProgress()
		if to == movev1.State_STATE_PLANNED {
			m.PinnedSequence, m.CopyCursor, m.TailSequence, m.VerifiedAtMs = 0, nil, 0, 0
		}
		if to == movev1.State_STATE_ACCEPTED {
			m.Cancelling = false
		}
	})
	return &migrationv1.AdvanceResponse{Move: s.mv}, nil
}

// allowed is which state may follow which by the word of a migrator.
func allowed(m *movev1.Move, to movev1.State) bool {
	from, hands := m.GetState(), m.GetHandOver()
	const (
		planned, pinned, copying     = movev1.State_STATE_PLANNED, movev1.State_STATE_PINNED, movev1.State_STATE_COPYING
		tailing, verifying, fenced   = movev1.State_STATE_TAILING, movev1.State_STATE_VERIFYING, movev1.State_STATE_FENCED
		accepted, committed, failedS = movev1.State_STATE_ACCEPTED, movev1.State_STATE_COMMITTED, movev1.State_STATE_FAILED
	)
	switch {
	case from == to, to == failedS:
		return true
	case to == planned:
		return from < fenced
	case m.GetPurpose() == movev1.Purpose_PURPOSE_REPAIR:
		return from == planned && to == verifying || from == verifying && to == committed
	case to == accepted:
		return from == fenced && hands
	case to == committed:
		return !hands && from == verifying
	}
	return from == pinned && to == copying || from == copying && to == tailing || from == tailing && to == verifying || from == verifying && to == tailing
}

func (s *source) Pin(context.Context, *migrationv1.PinRequest) (*migrationv1.PinResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pinned == 0 {
		s.pinned, s.broken = s.seq+1, false
	}
	if s.mv.GetState() == movev1.State_STATE_PLANNED {
		s.alterLocked(func(m *movev1.Move) { m.State, m.PinnedSequence = movev1.State_STATE_PINNED, s.pinned })
	}
	return &migrationv1.PinResponse{Sequence: s.pinned}, nil
}

func (s *source) Export(r *migrationv1.ExportRequest, out grpc.ServerStreamingServer[migrationv1.ExportResponse]) error {
	all := s.all()
	keys := slices.DeleteFunc(slices.Sorted(maps.Keys(all)), func(k string) bool { return k <= string(r.GetCursor()) })
	for i := 0; i <= len(keys); i += s.size {
		a := &migrationv1.ExportResponse{Cursor: r.GetCursor(), Finished: i+s.size > len(keys)}
		for _, k := range keys[i:min(i+s.size, len(keys))] {
			a.Records = append(a.Records, &movev1.EncodedRecord{Key: []byte(k), Value: all[k]})
			a.Cursor = []byte(k)
		}
		for _, k := range keys[min(i+s.size, len(keys)):] {
			a.RemainingBytes += int64(len(k) + len(all[k]))
		}
		if err := out.Send(a); err != nil {
			return err
		}
	}
	return nil
}

// beatEvery is how often a feed without changes says something.
const beatEvery = 5 * time.Millisecond

func (s *source) Follow(r *migrationv1.FollowRequest, out grpc.ServerStreamingServer[migrationv1.FollowResponse]) error {
	next := r.GetFromSequence()
	for {
		s.mu.Lock()
		if s.broken || s.pinned == 0 || next < s.pinned {
			s.mu.Unlock()
			return refused(codes.OutOfRange, reasonTooOld, "from %d, pinned at %d", next, s.pinned)
		}
		a := &migrationv1.FollowResponse{Sequence: s.seq, NewestSequence: s.seq, AtMs: time.Now().UnixMilli()}
		for _, c := range s.log {
			if c.seq >= next {
				a.Records = append(a.Records, &movev1.EncodedRecord{Key: c.key, Value: c.value})
			}
		}
		next = max(s.seq+1, next)
		changed := s.changed
		s.mu.Unlock()
		if err := out.Send(a); err != nil {
			return err
		}
		timer := time.NewTimer(beatEvery)
		select {
		case <-changed:
		case <-timer.C:
		case <-out.Context().Done():
		}
		timer.Stop()
		if out.Context().Err() != nil {
			return out.Context().Err()
		}
	}
}

func (s *source) Fence(context.Context, *migrationv1.FenceRequest) (*migrationv1.FenceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch st := s.mv.GetState(); {
	case st == movev1.State_STATE_FENCED:
	case st != movev1.State_STATE_VERIFYING || s.mv.GetVerifiedAtMs() == 0:
		return nil, refused(codes.FailedPrecondition, reasonMoveState, "fence in %s", st)
	default:
		s.fenced = true
		s.alterLocked(func(m *movev1.Move) { m.State, m.FenceSequence = movev1.State_STATE_FENCED, s.seq })
	}
	return &migrationv1.FenceResponse{Sequence: s.mv.GetFenceSequence(), KnownEpoch: 3}, nil
}

func (s *source) Lift(context.Context, *migrationv1.LiftRequest) (*migrationv1.LiftResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.mv.GetState(); st >= movev1.State_STATE_ACCEPTED && st <= movev1.State_STATE_RELEASED {
		return nil, refused(codes.FailedPrecondition, reasonMoveState, "lift in %s", st)
	}
	if s.mv.GetState() == movev1.State_STATE_FENCED {
		if s.target.isOwner() {
			s.t.Error("the fence is lifted of a range that the target has accepted")
		}
		s.alterLocked(func(m *movev1.Move) {
			m.FenceSequence, m.State = 0, movev1.State_STATE_VERIFYING
			if m.GetCancelling() {
				m.State, m.Cancelling = movev1.State_STATE_CANCELLED, false
			}
		})
	}
	s.fenced = false
	return &migrationv1.LiftResponse{}, nil
}

func (s *source) Give(context.Context, *migrationv1.GiveRequest) (*migrationv1.GiveResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch st := s.mv.GetState(); st {
	case movev1.State_STATE_COMMITTED:
	case movev1.State_STATE_ACCEPTED:
		if !s.target.isOwner() || !s.fenced {
			s.t.Error("a range is given that the target has not accepted")
		}
		s.given = true
		s.alterLocked(func(m *movev1.Move) { m.State = movev1.State_STATE_COMMITTED })
	default:
		return nil, refused(codes.FailedPrecondition, reasonMoveState, "give in %s", st)
	}
	return &migrationv1.GiveResponse{}, nil
}

func (s *source) Release(context.Context, *migrationv1.ReleaseRequest) (*migrationv1.ReleaseResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch st := s.mv.GetState(); st {
	case movev1.State_STATE_COMMITTED:
		s.alterLocked(func(m *movev1.Move) { m.State = movev1.State_STATE_RELEASED })
	case movev1.State_STATE_PLANNED, movev1.State_STATE_RELEASED, movev1.State_STATE_CANCELLED:
	default:
		return nil, refused(codes.FailedPrecondition, reasonMoveState, "release in %s", st)
	}
	s.pinned = 0
	return &migrationv1.ReleaseResponse{}, nil
}

// destination is the node that gets the data.
type destination struct {
	replicas
	t      *testing.T
	source *source

	id, cluster, incarnation, refusal string // guarded by mu
	formats                           []uint32
	prepared, accepted                bool   // guarded by mu
	epoch                             uint64 // guarded by mu
	deaf                              bool   // guarded by mu; takes batches and acknowledges none
	refuseAccept                      bool   // guarded by mu
	dead                              bool   // guarded by mu; answers nothing once it was asked to accept
	ingested                          int64  // guarded by mu; bytes
	onPrepare                         func() // guarded by mu; called once, by the next Prepare
}

func (d *destination) isOwner() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.accepted
}

func (d *destination) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *destination) Describe(context.Context, *replicav1.DescribeRequest) (*replicav1.DescribeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &replicav1.DescribeResponse{ClusterId: d.cluster, NodeId: d.id, Incarnation: d.incarnation, RecordFormats: d.formats, Refusal: d.refusal}, nil
}

func (d *destination) Ingest(in grpc.BidiStreamingServer[replicav1.IngestRequest, replicav1.IngestResponse]) error {
	first, err := in.Recv()
	if err != nil {
		return err
	}
	last := []byte(nil)
	for {
		r, err := in.Recv()
		if err == io.EOF || r.GetFinish() {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range r.GetBatch().GetRecords() {
			if first.GetStart().GetSorted() && bytes.Compare(last, e.GetKey()) >= 0 {
				return status.Errorf(codes.InvalidArgument, "not sorted")
			}
			last = e.GetKey()
			if err := d.join(e.GetKey(), e.GetValue()); err != nil {
				return err
			}
		}
		d.mu.Lock()
		deaf := d.deaf
		for _, e := range r.GetBatch().GetRecords() {
			d.ingested += int64(len(e.GetKey()) + len(e.GetValue()))
		}
		d.mu.Unlock()
		if deaf {
			continue
		}
		if err := in.Send(&replicav1.IngestResponse{DurableNumber: r.GetBatch().GetNumber()}); err != nil {
			return err
		}
	}
}

func (d *destination) Prepare(_ context.Context, r *replicav1.PrepareRequest) (*replicav1.PrepareResponse, error) {
	d.mu.Lock()
	hook := d.onPrepare
	d.onPrepare = nil
	d.mu.Unlock()
	if hook != nil {
		hook()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.accepted {
		return nil, refused(codes.FailedPrecondition, reasonMoveState, "accepted already")
	}
	if len(r.GetRanges()) == 0 || r.GetOwnerAddr() == "" {
		return nil, status.Error(codes.InvalidArgument, "no ranges")
	}
	d.prepared = true
	return &replicav1.PrepareResponse{KnownEpoch: 5}, nil
}

func (d *destination) Accept(_ context.Context, r *replicav1.AcceptRequest) (*replicav1.AcceptResponse, error) {
	d.mu.Lock()
	repeat := d.accepted && d.epoch == r.GetEpoch()
	prepared, refuse, dead := d.prepared, d.refuseAccept, d.dead
	d.mu.Unlock()
	switch {
	case dead:
		return nil, status.Error(codes.Unavailable, "it is dead")
	case repeat:
		return &replicav1.AcceptResponse{}, nil
	case !prepared || refuse:
		return nil, refused(codes.FailedPrecondition, reasonMoveState, "not prepared")
	case r.GetEpoch() <= 5:
		return nil, status.Error(codes.InvalidArgument, "epoch")
	}
	d.source.mu.Lock()
	fenced, st, epoch := d.source.fenced, d.source.mv.GetState(), d.source.mv.GetEpoch()
	d.source.mu.Unlock()
	if !fenced || st != movev1.State_STATE_FENCED || epoch != r.GetEpoch() {
		d.t.Errorf("Accept while the source is %s, fenced %v, epoch %d for %d", st, fenced, epoch, r.GetEpoch())
	}
	if k := d.source.lacks(&d.records); k != "" {
		d.t.Errorf("Accept before the target has all of %q", k)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.accepted, d.epoch = true, r.GetEpoch()
	return &replicav1.AcceptResponse{}, nil
}

func (d *destination) Decline(_ context.Context, r *replicav1.DeclineRequest) (*replicav1.DeclineResponse, error) {
	if epoch := d.source.current().GetEpoch(); r.GetEpoch() < epoch {
		d.t.Errorf("declined up to epoch %d, Accept may come late with %d", r.GetEpoch(), epoch)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return nil, status.Error(codes.Unavailable, "it is dead")
	}
	if !d.accepted {
		d.prepared = false
	}
	return &replicav1.DeclineResponse{Accepted: d.accepted}, nil
}

// world is two nodes and the migrators of one of them, one after another.
type world struct {
	t      *testing.T
	source *source
	target *destination
	addr   string // of the target
	conn   *grpc.ClientConn
	o      Options
	fault  *fault // nil: none
}

func serve(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s, served := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true})), make(chan error, 1)
	register(s)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		require.NoError(t, <-served)
	})
	return l.Addr().String()
}

func newWorld(t *testing.T, m *movev1.Move) *world {
	t.Helper()
	w := &world{t: t}
	w.source = &source{t: t, changed: make(chan struct{}), size: 7}
	w.target = &destination{t: t, source: w.source, id: "n2", cluster: "c", incarnation: "i1", formats: []uint32{1}}
	w.source.target = w.target
	w.addr = serve(t, func(s *grpc.Server) { replicav1.RegisterReplicaServiceServer(s, w.target) })
	own := serve(t, func(s *grpc.Server) {
		migrationv1.RegisterMigrationServiceServer(s, w.source)
		replicav1.RegisterReplicaServiceServer(s, w.source)
	})
	if m.Target == nil {
		m.Target = &movev1.Target{NodeId: "n2", Addr: w.addr}
	}
	m.Id, m.SourceNodeId, m.Version, m.State = "m1", "n1", 1, movev1.State_STATE_PLANNED
	w.source.mv = m
	intercept := []grpc.DialOption{grpc.WithUnaryInterceptor(w.unary), grpc.WithStreamInterceptor(w.stream)}
	var err error
	w.conn, err = grpc.NewClient(own, append(intercept, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.conn.Close()) })
	w.o = Options{
		Migration: migrationv1.NewMigrationServiceClient(w.conn), Replica: replicav1.NewReplicaServiceClient(w.conn),
		Self: Identity{ClusterID: "c", NodeID: "n1", Addr: "n1:1"}, Targets: stream.NewTargets(intercept...),
		Addr: func(string) (string, bool) { return "", false }, Compare: w.compare, Log: slog.New(slog.DiscardHandler),
		Times: Times{
			Call: 250 * time.Millisecond, Fence: 2 * time.Second, MinRetry: time.Millisecond, MaxRetry: 20 * time.Millisecond,
			Report: 10 * time.Millisecond, Stall: 400 * time.Millisecond,
		},
	}
	return w
}

// compare makes the target have what the source has, as package compare does, by way of both services.
func (w *world) compare(ctx context.Context, c Comparison) (Compared, error) {
	var all [][]byte
	for k := range w.source.all() {
		all = append(all, []byte(k))
	}
	r := New(w.o, w.source.current())
	t := &target{replica: c.Other}
	if err := r.equalize(ctx, t, all); err != nil {
		return Compared{}, err
	}
	if c.BothWays {
		for k, v := range w.target.all() {
			if err := w.source.join([]byte(k), v); err != nil {
				return Compared{}, err
			}
		}
	}
	c.Progress(int64(len(all)), 0)
	return Compared{ComparedKeys: int64(len(all))}, nil
}

// stuck has the target acknowledge nothing from the next hand-over on, in which something is to be sent.
func (w *world) stuck() {
	w.target.onPrepare = func() {
		w.target.set(func() { w.target.deaf = true })
		_ = w.source.write("not acknowledged", "x")
	}
}

// handOver is a move of the whole ring.
func handOver() *movev1.Move {
	return &movev1.Move{
		Purpose: movev1.Purpose_PURPOSE_DRAIN, Mode: movev1.Mode_MODE_ONCE, HandOver: true,
		What: &movev1.Selection{HashRanges: []*datav1.HashRange{{}}},
	}
}

// process is a migrator that runs one move.
type process struct {
	r      *Runner
	cancel context.CancelFunc
	done   chan struct{}
}

// begin starts a migrator: it is told the news of the move until it ends.
func (w *world) begin() *process {
	ctx, cancel := context.WithCancel(w.t.Context())
	p := &process{r: New(w.o, w.source.current()), cancel: cancel, done: make(chan struct{})}
	news := make(chan struct{})
	go func() {
		defer close(news)
		for {
			w.source.mu.Lock()
			m, changed := w.source.mv, w.source.changed
			w.source.mu.Unlock()
			switch m.GetState() {
			case movev1.State_STATE_RELEASED, movev1.State_STATE_CANCELLED:
				p.r.Gone() // as the list of work does
			default:
				p.r.See(m)
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		defer close(p.done)
		p.r.Run(ctx)
		cancel()
		<-news
	}()
	return p
}

// end waits until the migrator has ended by itself.
func (p *process) end(t *testing.T) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		t.Fatal("the runner does not end: ", p.r.move())
	}
}

// kill ends a migrator in the middle of what it does.
func (p *process) kill() {
	p.cancel()
	<-p.done
}

// waitState waits until the move has come to a state, or past it.
func (w *world) waitState(s movev1.State) {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return w.source.current().GetState() >= s }, time.Minute, time.Millisecond, "%v", w.source.current())
}
