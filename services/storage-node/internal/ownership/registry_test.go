package ownership

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

var bg = context.Background()

// realEngine is the engine as the store declares it, as in package node. Writes can be made to fail.
type realEngine struct {
	*engine.Engine

	mu   sync.Mutex
	fail error // of Submit
}

func (e *realEngine) NewBatch() store.Batch { return new(engine.Batch) }

func (e *realEngine) Submit(b store.Batch) (ikey.Seq, error) {
	e.mu.Lock()
	err := e.fail
	e.mu.Unlock()
	if err != nil {
		return 0, err
	}
	p, err := e.Engine.Submit(b.(*engine.Batch))
	if errors.Is(err, engine.ErrConflict) {
		return 0, store.ErrConflict
	}
	return p.Seq(), err
}

func (e *realEngine) NewIter(lower, upper []byte) (store.Iter, error) {
	return e.Engine.NewIter(engine.IterOptions{Lower: lower, Upper: upper})
}

func (e *realEngine) NewSnapshot() store.Snapshot {
	return realSnapshot{e.Engine.NewSnapshot()}
}

type realSnapshot struct{ *engine.Snapshot }

func (s realSnapshot) NewIter(lower, upper []byte) (store.Iter, error) {
	return s.Snapshot.NewIter(engine.IterOptions{Lower: lower, Upper: upper})
}

func (e *realEngine) Tail(ikey.Seq) (store.Tail, error) { return nil, store.ErrOutOfRange }
func (e *realEngine) failWith(err error)                { e.mu.Lock(); defer e.mu.Unlock(); e.fail = err }

type realClock struct{}

func (realClock) Now() time.Time                         { return time.Now() }
func (realClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// wall is a clock that stands until it is moved.
type wall struct {
	mu  sync.Mutex
	now time.Time
}

func (w *wall) Now() time.Time       { w.mu.Lock(); defer w.mu.Unlock(); return w.now }
func (w *wall) move(d time.Duration) { w.mu.Lock(); w.now = w.now.Add(d); w.mu.Unlock() }

// broom notes what it is to drop, and fails or waits when told to.
type broom struct {
	mu      sync.Mutex
	fail    error
	dropped []string
	during  func()
}

func (b *broom) Drop(_ context.Context, residues []Residue) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.during != nil {
		b.during()
	}
	if b.fail != nil {
		return b.fail
	}
	for _, e := range residues {
		b.dropped = append(b.dropped, fmt.Sprint(e.Ranges))
	}
	return nil
}

// node is a store with its registry over the real engine.
type node struct {
	*Registry
	fs        vfs.FS
	store     *store.Store
	engine    *realEngine
	wall      *wall
	broom     *broom
	log       *bytes.Buffer
	forgotten [][]ring.HashRange
}

const grace = 10 * time.Hour

// start opens node n1 in fs.
func start(t *testing.T, fs vfs.FS, w *wall, incarnation string) *node {
	t.Helper()
	return startAs(t, "n1", fs, w, incarnation)
}

func startAs(t *testing.T, id string, fs vfs.FS, w *wall, incarnation string) *node {
	t.Helper()
	if disk, ok := fs.(interface{ SetUsage(vfs.Usage) }); ok {
		disk.SetUsage(vfs.Usage{TotalBytes: 1 << 30, FreeBytes: 1 << 29})
	}
	e, err := engine.Open("data", engine.Options{
		FS: fs, Clock: realClock{}, Rand: rand.New(rand.NewPCG(1, 2)),
		MaxBatchBytes: 48 << 20, MemtableBytes: 1 << 20, LogSegmentBytes: 1 << 20, TableBytes: 256 << 10, ReserveBytes: 1 << 20, SpacePoll: time.Millisecond,
		Jobs: jobs.Options{Mode: jobs.ModeAlways},
	})
	require.NoError(t, err)
	n := &node{fs: fs, engine: &realEngine{Engine: e}, wall: w, broom: &broom{}, log: &bytes.Buffer{}}
	n.Registry = New(Options{
		NodeID: id, Incarnation: incarnation, ReplicationFactor: 2, Grace: grace, Now: w.Now, Log: slog.New(slog.NewTextHandler(n.log, nil)),
		Sequence: func() uint64 { return uint64(e.AppliedSeq()) }, Cleaner: n.broom, retry: time.Millisecond,
		Forget: func(_ context.Context, ranges []ring.HashRange) error {
			n.forgotten = append(n.forgotten, ranges)
			return nil
		},
	})
	n.store, err = store.New(n.engine, store.Options{NodeID: id, Now: w.Now, Owners: n.Registry})
	require.NoError(t, err)
	require.NoError(t, n.Open(bg, n.store))
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return n
}

func open(t *testing.T) *node {
	return start(t, vfs.NewMem(), &wall{now: time.UnixMilli(1_700_000_000_000)}, "i1")
}

// restart closes a node and opens it again: whatever was said must be what is found.
func (n *node) restart(t *testing.T) *node {
	t.Helper()
	require.NoError(t, n.engine.Close())
	return startAs(t, n.o.NodeID, n.fs, n.wall, n.o.Incarnation)
}

// Ranges that tests use: quarters of the ring.
const quarter = 1 << 62

func q(i int) []ring.HashRange {
	return []ring.HashRange{{Start: uint64(i) * quarter, End: uint64(i+1) % 4 * quarter}}
}

// keyIn returns a key of tenant t with a token in ranges.
func keyIn(ranges []ring.HashRange, nth int) string {
	for i := 0; ; i++ {
		k := "k" + strconv.Itoa(i)
		if ring.In(ring.Normal(ranges), ring.Token("t", k)) {
			if nth--; nth < 0 {
				return k
			}
		}
	}
}

func (n *node) write(key string) error {
	_, err := n.store.Write(bg, store.WriteRequest{Tenant: "t", Key: key, Value: []byte("v")})
	return err
}

func (n *node) read(key string) error {
	_, err := n.store.Read(bg, "t", key, nil)
	return err
}

func (n *node) ingest(ranges []ring.HashRange) error {
	return n.Ingest([]uint64{ring.Token("t", keyIn(ranges, 0))}, func() error { return nil })
}

func requireReason(t require.TestingT, want store.Reason, err error) {
	require.Equal(t, want, store.ReasonOf(err), "%v", err)
}

var n2 = Owner{NodeID: "n2", Addr: "10.0.0.2:8080"}

func declared(id string, s membership.State) membership.Declaration {
	inc := "i1"
	if id != "n1" {
		inc = "other"
	}
	return membership.Declaration{NodeID: id, Version: 1, State: s, Incarnation: inc, VirtualNodes: 4, DeclaredAt: 5}
}

func up(ids ...string) (out []membership.Declaration) {
	for _, id := range ids {
		out = append(out, declared(id, membership.Up))
	}
	return out
}

// Danger: a source that serves a range after it has given it, or forgets over a restart that it had.
func TestTheSourceFencesAndGivesThroughRestarts(t *testing.T) {
	n := open(t)
	require.False(t, n.Active())
	in, out := keyIn(q(1), 0), keyIn(q(2), 0)
	require.NoError(t, n.write(in))
	seq, known, err := n.Fence(bg, "m1", q(1))
	require.NoError(t, err)
	require.NotZero(t, seq)
	require.Zero(t, known)
	for range 2 {
		again, known, err := n.Fence(bg, "m1", q(1))
		require.NoError(t, err)
		require.Equal(t, seq, again)
		require.Zero(t, known)
		requireReason(t, store.ReasonRangeMoving, n.write(in))
		require.NoError(t, n.read(in))
		require.NoError(t, n.write(out))
		requireReason(t, store.ReasonRangeMoving, n.ingest(q(1)))
		require.NoError(t, n.ingest(q(2)))
		require.Equal(t, q(1), n.View().Fenced)
		n = n.restart(t)
	}
	for range 2 {
		require.NoError(t, n.Give(bg, "m1", n2, 1))
		require.NoError(t, n.Give(bg, "m1", n2, 1))
		for _, err := range []error{n.write(in), n.read(in)} {
			requireReason(t, store.ReasonNotOwner, err)
			var refused *store.Error
			require.ErrorAs(t, err, &refused)
			require.Equal(t, map[string]string{"owner_node_id": "n2", "owner_addr": "10.0.0.2:8080"}, refused.Metadata)
		}
		require.NoError(t, n.write(out))
		again, _, err := n.Fence(bg, "m1", q(1))
		require.NoError(t, err)
		require.Equal(t, seq, again, "a repeat that comes late")
		requireReason(t, store.ReasonMoveState, n.Lift(bg, "m1"))
		_, _, err = n.Fence(bg, "m2", q(1))
		requireReason(t, store.ReasonNotOwner, err)
		v := n.View()
		require.Equal(t, q(1), v.Given)
		require.Empty(t, v.Fenced)
		require.Len(t, v.Residue, 1)
		require.Equal(t, q(1), v.Residue[0].Ranges)
		require.GreaterOrEqual(t, v.Residue[0].Sequence, seq)
		require.Equal(t, n.wall.Now(), v.Residue[0].Since.In(n.wall.Now().Location()))
		n = n.restart(t)
	}
	notOwner, moving := n.Refused()
	require.Zero(t, notOwner+moving)
}

// Danger: a fence that is lifted by halves, or one that can be lifted after the ranges are gone.
func TestALiftedFenceLetsWritesPassAgain(t *testing.T) {
	n := open(t)
	key := keyIn(q(0), 0)
	require.NoError(t, n.Lift(bg, "m1"), "there is none")
	first, _, err := n.Fence(bg, "m1", q(0))
	require.NoError(t, err)
	requireReason(t, store.ReasonRangeMoving, n.write(key))
	for range 2 {
		require.NoError(t, n.Lift(bg, "m1"))
		require.NoError(t, n.Lift(bg, "m1"))
		require.False(t, n.Active())
		require.NoError(t, n.write(key))
		requireReason(t, store.ReasonMoveState, n.Give(bg, "m1", n2, 1))
		n = n.restart(t)
	}
	second, _, err := n.Fence(bg, "m1", q(0))
	require.NoError(t, err)
	require.Greater(t, second, first, "what was written between counts")
}

// Danger: the target serves before it has everything, or does not after it said that it is the owner.
func TestTheTargetPreparesAndAcceptsThroughRestarts(t *testing.T) {
	n := open(t)
	key := keyIn(q(3), 0)
	require.NoError(t, n.write(key), "a node without facts serves everybody")
	for range 2 {
		for range 2 {
			known, err := n.Prepare(bg, "m1", q(3), n2)
			require.NoError(t, err)
			require.Zero(t, known)
		}
		requireReason(t, store.ReasonRangeMoving, n.write(key))
		requireReason(t, store.ReasonRangeMoving, n.read(key))
		require.NoError(t, n.ingest(q(3)), "what is handed over must come in")
		requireReason(t, store.ReasonMoveState, n.Accept(bg, "m1", "n3", 7))
		requireReason(t, store.ReasonMoveState, n.Accept(bg, "m1", "n2", 0))
		n = n.restart(t)
	}
	for range 2 {
		require.NoError(t, n.Accept(bg, "m1", "n2", 7))
		require.NoError(t, n.Accept(bg, "m1", "n2", 7))
		requireReason(t, store.ReasonMoveState, n.Accept(bg, "m1", "n2", 8))
		require.NoError(t, n.write(key))
		require.False(t, n.Active())
		accepted, err := n.Decline(bg, "m1", "n2")
		require.NoError(t, err)
		require.True(t, accepted)
		require.NoError(t, n.write(key), "what is accepted is never undone")
		known, err := n.Prepare(bg, "m1", q(3), n2)
		require.NoError(t, err)
		require.Zero(t, known, "a repeat that comes late")
		n = n.restart(t)
	}
	_, known, err := n.Fence(bg, "m1", q(3))
	require.NoError(t, err, "moves of two nodes may have one id")
	require.EqualValues(t, 7, known)
	requireReason(t, store.ReasonMoveState, n.Give(bg, "m1", n2, 7))
	require.NoError(t, n.Give(bg, "m1", n2, 8))
}

// Danger: a preparation that is declined goes on refusing, or comes back.
func TestADeclinedPreparationIsOver(t *testing.T) {
	n := open(t)
	require.NoError(t, n.SetMembers(bg, up("n1", "n2", "n3", "n4")))
	free := ring.Subtract([]ring.HashRange{{}}, ring.RangesIn(n.View().Owned))
	key := keyIn(free, 0)
	accepted, err := n.Decline(bg, "m1", "n2")
	require.NoError(t, err)
	require.False(t, accepted)
	_, err = n.Prepare(bg, "m1", free, n2)
	require.NoError(t, err)
	for range 2 {
		accepted, err := n.Decline(bg, "m1", "n2")
		require.NoError(t, err)
		require.False(t, accepted)
		require.NoError(t, n.write(key))
		requireReason(t, store.ReasonMoveState, n.Accept(bg, "m1", "n2", 1))
		require.Len(t, n.View().Residue, 1, "what was copied is nobody's")
		require.Equal(t, free, n.View().Residue[0].Ranges)
		n = n.restart(t)
	}
	known, err := n.Prepare(bg, "m1", free, n2)
	require.NoError(t, err, "the move tries again; what was copied a moment ago is harmless")
	require.Empty(t, n.View().Residue)
	require.EqualValues(t, 1, known)
	requireReason(t, store.ReasonMoveState, n.Accept(bg, "m1", "n2", 1)) // of the first try, and late
	require.NoError(t, n.Accept(bg, "m1", "n2", 2))
}

// Danger: a range that comes back is refused for ever, or served under an old epoch.
func TestARangeComesBackByAnotherMove(t *testing.T) {
	n := open(t)
	key := keyIn(q(1), 0)
	_, _, err := n.Fence(bg, "away", q(1))
	require.NoError(t, err)
	require.NoError(t, n.Give(bg, "away", n2, 5))
	require.NoError(t, n.makeWay(bg, q(1)), "as a migrator that begins to send would have it")
	require.Empty(t, n.View().Residue)
	require.NoError(t, n.ingest(q(1)))
	requireReason(t, store.ReasonNotOwner, n.write(key))
	known, err := n.Prepare(bg, "back", q(1), n2)
	require.NoError(t, err)
	require.EqualValues(t, 5, known)
	requireReason(t, store.ReasonNotOwner, n.write(key))
	requireReason(t, store.ReasonMoveState, n.Accept(bg, "back", "n2", 5))
	require.NoError(t, n.Accept(bg, "back", "n2", 6))
	require.NoError(t, n.write(key))
	n = n.restart(t)
	require.NoError(t, n.write(key))
	require.Empty(t, n.View().Given)
}

// Danger: two moves hand over one range, and one of them loses what the other has sent.
func TestMovesOfOneRangeExcludeEachOther(t *testing.T) {
	n := open(t)
	half := ring.Union(q(0), q(1))
	_, _, err := n.Fence(bg, "m1", half)
	require.NoError(t, err)
	_, _, err = n.Fence(bg, "m2", q(1))
	requireReason(t, store.ReasonMovesOverlap, err)
	_, err = n.Prepare(bg, "m3", q(0), n2)
	requireReason(t, store.ReasonMovesOverlap, err)
	_, _, err = n.Fence(bg, "m1", q(1))
	requireReason(t, store.ReasonMoveState, err)
	_, err = n.Prepare(bg, "m4", q(2), n2)
	require.NoError(t, err)
	_, _, err = n.Fence(bg, "m5", q(2))
	requireReason(t, store.ReasonMovesOverlap, err)
	_, err = n.Prepare(bg, "m4", q(3), n2)
	requireReason(t, store.ReasonMoveState, err)
}

// Danger: what makes no sense is stored and stands in the way for ever.
func TestBadHandOversChangeNothing(t *testing.T) {
	n := open(t)
	for _, move := range []string{"", "A", "a b", "a/b", string(make([]byte, 65))} {
		_, _, err := n.Fence(bg, move, q(0))
		requireReason(t, store.ReasonMove, err)
		_, err = n.Prepare(bg, move, q(0), n2)
		requireReason(t, store.ReasonMove, err)
	}
	for _, ranges := range [][]ring.HashRange{nil, make([]ring.HashRange, 4097)} {
		_, _, err := n.Fence(bg, "m", ranges)
		requireReason(t, store.ReasonRange, err)
		_, err = n.Prepare(bg, "m", ranges, n2)
		requireReason(t, store.ReasonRange, err)
	}
	for _, from := range []Owner{{}, {NodeID: "n1"}} {
		_, err := n.Prepare(bg, "m", q(0), from)
		requireReason(t, store.ReasonMove, err)
		requireReason(t, store.ReasonTarget, n.Give(bg, "m", from, 1))
	}
	requireReason(t, store.ReasonMoveState, n.Give(bg, "m", n2, 1))
	requireReason(t, store.ReasonMoveState, n.Accept(bg, "m", "n2", 1))
	_, _, err := n.Fence(bg, "m", q(0))
	require.NoError(t, err)
	requireReason(t, store.ReasonMoveState, n.Give(bg, "m", n2, 0))
	requireReason(t, store.ReasonMoveState, n.Give(bg, "m", n2, ^uint64(0)))
	ended, cancel := context.WithCancel(bg)
	cancel()
	require.ErrorIs(t, n.Give(ended, "m", n2, 1), context.Canceled)
	require.Empty(t, n.View().Given)
}

// Danger: a write that was acknowledged is behind the sequence up to which the target was sent everything.
func TestNoWriteIsNewerThanTheFence(t *testing.T) {
	n := open(t)
	var wg sync.WaitGroup
	var stop atomic.Bool
	moving := q(2)
	for w := range 6 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				key := keyIn(moving, i%5)
				var err error
				switch w % 3 {
				case 0:
					err = n.write(key)
				case 1:
					_, err = n.store.BatchWrite(bg, store.BatchWriteRequest{Tenant: "t", Atomic: true, Ops: []store.Op{
						{Kind: store.Put, Key: key}, {Kind: store.Put, Key: keyIn(q(0), i%5)},
					}})
				default: // records of another node
					err = n.Ingest([]uint64{ring.Token("t", key)}, func() error {
						b := n.engine.NewBatch()
						b.Merge(ikey.AppendEngineKey(nil, "t", "other"), []byte("x"))
						_, err := n.engine.Submit(b)
						return err
					})
				}
				if err != nil && store.ReasonOf(err) != store.ReasonRangeMoving {
					t.Errorf("writer %d: %v", w, err)
					return
				}
			}
		})
	}
	for i := range 30 {
		move := "m" + strconv.Itoa(i)
		seq, _, err := n.Fence(bg, move, moving)
		require.NoError(t, err)
		// Under the fence only q(0) is written, and what the registry stores itself.
		tail, err := n.engine.Engine.Tail(ikey.Seq(seq + 1))
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(bg)
		cancel()
		for {
			c, err := tail.Next(ctx)
			if err != nil {
				require.ErrorIs(t, err, context.Canceled)
				break
			}
			tenant, key, err := ikey.SplitEngineKey(c.Key)
			require.NoError(t, err)
			if string(tenant) == "t" {
				require.False(t, string(key) == "other" || ring.In(ring.Normal(moving), ring.Token("t", string(key))), "%s is newer than the fence", key)
			}
		}
		require.NoError(t, tail.Close())
		require.NoError(t, n.Lift(bg, move))
	}
	stop.Store(true)
	wg.Wait()
}

// Danger: a step that a crash cut in two leaves a range that nobody owns, or two do; its repeat must end
// as it would have.
func TestEachStepCanBeRepeatedAfterAFailure(t *testing.T) {
	boom := errors.New("boom")
	n := open(t)
	again := func(name string, step func() error) {
		n.engine.failWith(boom)
		require.ErrorIs(t, step(), boom, name)
		n.engine.failWith(nil)
		n = n.restart(t)
		require.NoError(t, step(), name)
		n = n.restart(t)
		require.NoError(t, step(), name)
	}
	again("fence", func() error { _, _, err := n.Fence(bg, "m1", q(0)); return err })
	again("give", func() error { return n.Give(bg, "m1", n2, 1) })
	again("prepare", func() error { _, err := n.Prepare(bg, "m2", q(1), n2); return err })
	again("accept", func() error { return n.Accept(bg, "m2", "n2", 1) })
	again("prepare", func() error { _, err := n.Prepare(bg, "m3", q(2), n2); return err })
	again("decline", func() error { _, err := n.Decline(bg, "m3", "n2"); return err })
	again("fence", func() error { _, _, err := n.Fence(bg, "m4", q(3)); return err })
	again("lift", func() error { return n.Lift(bg, "m4") })
	v := n.View()
	require.Equal(t, q(0), v.Given)
	require.Empty(t, v.Fenced)
	require.Empty(t, v.Prepared)
	requireReason(t, store.ReasonNotOwner, n.write(keyIn(q(0), 0)))
	for i := 1; i < 4; i++ {
		require.NoError(t, n.write(keyIn(q(i), 0)))
	}
}

// Danger: the log says that a range was given away, and the disk refused to remember it.
func TestTheLogTellsOfNothingThatIsNotDurable(t *testing.T) {
	n := open(t)
	_, _, err := n.Fence(bg, "m1", q(0))
	require.NoError(t, err)
	for _, s := range []struct {
		line string
		call func() error
	}{
		{"ranges prepared", func() error { _, err := n.Prepare(bg, "m2", q(1), n2); return err }},
		{"ranges accepted", func() error { return n.Accept(bg, "m2", "n2", 1) }},
		{"ranges given", func() error { return n.Give(bg, "m1", n2, 1) }},
		{"ranges prepared", func() error { _, err := n.Prepare(bg, "m3", q(2), n2); return err }},
		{"preparation declined", func() error { _, err := n.Decline(bg, "m3", "n2"); return err }},
		{"ranges fenced", func() error { _, _, err := n.Fence(bg, "m4", q(3)); return err }},
		{"fence lifted", func() error { return n.Lift(bg, "m4") }},
		{"ranges by the members", func() error { return n.SetMembers(bg, up("n1", "n2", "n3")) }},
	} {
		n.log.Reset()
		n.engine.failWith(errors.New("the disk is full"))
		require.Error(t, s.call(), s.line)
		require.NotContains(t, n.log.String(), s.line)
		n.engine.failWith(nil)
		require.NoError(t, s.call(), s.line)
		require.Equal(t, 1, strings.Count(n.log.String(), s.line), n.log.String())
	}
}

// Danger: a fence whose sequence was never told is forgotten, or told wrongly after the restart.
func TestAFenceWithoutItsSequenceStandsAfterACrash(t *testing.T) {
	n := open(t)
	require.NoError(t, n.change(bg, func(next *state) ([]string, error) { return n.raiseFence(next, "m1", q(1)) }))
	n = n.restart(t)
	requireReason(t, store.ReasonRangeMoving, n.write(keyIn(q(1), 0)))
	require.NoError(t, n.write(keyIn(q(2), 0)))
	requireReason(t, store.ReasonMoveState, n.Give(bg, "m1", n2, 1))
	before := uint64(n.engine.AppliedSeq())
	seq, _, err := n.Fence(bg, "m1", q(1))
	require.NoError(t, err)
	require.GreaterOrEqual(t, seq, before)
}

// Danger: a restored directory refuses ranges because of what another one promised.
func TestAnotherIncarnationForgetsHandOversAndKeepsResidue(t *testing.T) {
	n := open(t)
	for i, move := range []string{"given", "fenced"} {
		_, _, err := n.Fence(bg, move, q(i))
		require.NoError(t, err)
	}
	require.NoError(t, n.Give(bg, "given", n2, 9))
	_, err := n.Prepare(bg, "prepared", q(2), n2)
	require.NoError(t, err)
	require.NoError(t, n.engine.Close())
	for range 2 {
		n = start(t, n.fs, n.wall, "i2")
		require.False(t, n.Active())
		require.NoError(t, n.write(keyIn(q(0), 0)))
		v := n.View()
		require.Len(t, v.Residue, 1)
		require.Equal(t, q(0), v.Residue[0].Ranges)
		require.NoError(t, n.engine.Close())
	}
	n = start(t, n.fs, n.wall, "i2")
	known, err := n.Prepare(bg, "m", q(0), n2)
	require.NoError(t, err)
	require.EqualValues(t, 9, known)
}

// Danger: a node that can't read what it gave away serves it.
func TestDamageRefusesEverything(t *testing.T) {
	n := open(t)
	for key, value := range map[string]string{"ranges": "{", "move/m1": `{"format":2}`, "what": "{}"} {
		n := open(t)
		_, err := n.store.System(systemTenant).Write(bg, key, []byte(value), store.Causality{})
		require.NoError(t, err)
		n = n.restart(t)
		require.ErrorContains(t, n.Damage(), key)
		requireReason(t, store.ReasonCorruptedData, n.write("k"))
		requireReason(t, store.ReasonCorruptedData, n.read("k"))
		requireReason(t, store.ReasonCorruptedData, n.ingest(q(0)))
		requireReason(t, store.ReasonCorruptedData, n.Exchange(q(0)))
		_, _, err = n.Fence(bg, "m", q(0))
		requireReason(t, store.ReasonCorruptedData, err)
		requireReason(t, store.ReasonCorruptedData, n.SetMembers(bg, up("n1")))
	}
	require.NoError(t, n.Damage())
}

// Danger: a damaged table takes from a node that never handed anything over what it can still serve; or
// the mark that something is at stake comes after what it is for.
func TestDamageRefusesNothingWhenNothingWasAtStake(t *testing.T) {
	marks, failing := 0, errors.New("disk")
	mark := func() error { marks++; return failing }
	n := open(t)
	_, err := n.store.System(systemTenant).Write(bg, "ranges", []byte("{"), store.Causality{})
	require.NoError(t, err)
	reopen := func(atStake bool) *Registry {
		o := n.o
		o.Mark, o.AtStake = mark, atStake
		r := New(o)
		require.NoError(t, r.Open(bg, n.store))
		return r
	}
	r := reopen(false)
	require.Error(t, r.Damage())
	require.NoError(t, r.Admit(0, true))
	require.False(t, r.Active())
	_, _, err = r.Fence(bg, "m", q(0))
	requireReason(t, store.ReasonCorruptedData, err)
	requireReason(t, store.ReasonCorruptedData, reopen(true).Admit(0, false))
	require.Zero(t, marks)

	n = open(t)
	r = reopen(false)
	require.NoError(t, r.SetMembers(bg, up("n1", "n2")))
	require.Zero(t, marks, "a ring alone refuses nothing")
	_, _, err = r.Fence(bg, "m", q(0))
	require.ErrorIs(t, err, failing)
	require.False(t, r.Active(), "without the mark it is not remembered")
	failing = nil
	_, _, err = r.Fence(bg, "m", q(0))
	require.NoError(t, err)
	require.Equal(t, 2, marks)
	require.True(t, r.Active())
	require.True(t, reopen(true).Active())
}

// Danger: what is remembered of moves that are over grows for ever.
func TestOnlyTheNewestMovesAreRemembered(t *testing.T) {
	n := open(t)
	_, _, err := n.Fence(bg, "stands", q(3))
	require.NoError(t, err)
	require.NoError(t, n.change(bg, func(next *state) (moves []string, err error) {
		for i := range maxFacts + 50 {
			move := fmt.Sprintf("m%04d", i)
			next.facts[move] = fact{stage: lifted, ranges: q(0), at: n.wall.Now().Add(time.Duration(i))}
			moves = append(moves, move)
		}
		return moves, nil
	}))
	n = n.restart(t)
	facts := n.state.Load().facts
	require.Len(t, facts, maxFacts)
	require.Contains(t, facts, "stands")
	require.Contains(t, facts, "m1049")
	require.NotContains(t, facts, "m0050")
}

// What asking costs when nothing, and when something else, is refused.
func BenchmarkAdmit(b *testing.B) {
	for _, ranges := range []int{0, 1, 1000} {
		b.Run(strconv.Itoa(ranges), func(b *testing.B) {
			r := New(Options{NodeID: "n1", Incarnation: "i1"})
			s := &state{facts: map[string]fact{}}
			var all []ring.HashRange
			for i := range ranges {
				all = append(all, ring.HashRange{Start: uint64(i) << 40, End: uint64(i)<<40 + 1})
			}
			s.ground.given = withPart(nil, ring.Normal(all), n2)
			r.enter(s)
			for b.Loop() {
				if r.Active() && r.Admit(1<<62, true) != nil {
					b.Fatal("refused")
				}
			}
		})
	}
}
