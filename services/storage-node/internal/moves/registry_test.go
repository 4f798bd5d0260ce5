package moves

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
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
	t *testing.T

	mu      sync.Mutex
	fail    error // of Submit
	submits int
}

func (e *realEngine) NewBatch() store.Batch { return new(engine.Batch) }

func (e *realEngine) Submit(b store.Batch) (ikey.Seq, error) {
	e.mu.Lock()
	e.submits++
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

func (e *realEngine) NewSnapshot() store.Snapshot       { e.t.Fatal("no snapshot is needed"); return nil }
func (e *realEngine) Tail(ikey.Seq) (store.Tail, error) { return nil, store.ErrOutOfRange }
func (e *realEngine) written() int                      { e.mu.Lock(); defer e.mu.Unlock(); return e.submits }
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

// node is a store with its registry over the real engine. It is n1, incarnation i1.
type node struct {
	*Registry
	t      *testing.T
	store  *store.Store
	engine *realEngine
	wall   *wall
	log    *bytes.Buffer
	told   []Change
	damage []error
}

// start opens a node in fs and closes it when the test ends, unless restart did.
func start(t *testing.T, fs vfs.FS, changes ...func(*Options)) *node {
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
	n := &node{t: t, engine: &realEngine{Engine: e, t: t}, wall: &wall{now: time.UnixMilli(1_700_000_000_000)}, log: &bytes.Buffer{}}
	n.store, err = store.New(n.engine, store.Options{NodeID: "n1", Now: n.wall.Now})
	require.NoError(t, err)
	o := Options{
		NodeID: "n1", Incarnation: "i1", Now: n.wall.Now, Log: slog.New(slog.NewTextHandler(n.log, nil)),
		Changed: func(c Change) { n.told = append(n.told, c) },
		Problem: func(err error) { n.damage = append(n.damage, err) },
	}
	for _, change := range changes {
		change(&o)
	}
	n.Registry = New(o)
	require.Equal(t, membership.Joining, n.Wanted(), "nobody is up by mistake")
	require.NoError(t, n.Open(bg, n.store))
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return n
}

// restart closes a node and opens it again.
func restart(t *testing.T, n *node, fs vfs.FS, changes ...func(*Options)) *node {
	t.Helper()
	now := n.wall.Now()
	require.NoError(t, n.engine.Close())
	next := start(t, fs, changes...)
	next.wall.move(now.Sub(next.wall.Now()))
	return next
}

func requireReason(t require.TestingT, want store.Reason, err error) {
	require.Equal(t, want, store.ReasonOf(err), "%v", err)
}

// spec is a copy to n2.
func spec(id string, changes ...func(*Spec)) Spec {
	s := Spec{ID: id, Purpose: PurposeReplicate, Mode: Once, Target: Target{NodeID: "n2"}}
	for _, change := range changes {
		change(&s)
	}
	return s
}

// handOver is a part of a drain.
func handOver(ranges ...ring.HashRange) func(*Spec) {
	return func(s *Spec) { s.Purpose, s.HandOver, s.What = PurposeDrain, true, Selection{HashRanges: ranges} }
}

func follow(s *Spec) { s.Mode = Follow }
func stream(s *Spec) { s.Mode, s.Purpose = Follow, PurposeStream }
func repair(s *Spec) { s.Purpose = PurposeRepair }

func (n *node) create(specs ...Spec) *Move {
	n.t.Helper()
	all, err := n.Create(bg, specs...)
	require.NoError(n.t, err)
	return all[0]
}

// step advances a move as it is now.
func (n *node) step(id string, s Step) *Move {
	n.t.Helper()
	m, err := n.try(id, s)
	require.NoError(n.t, err)
	return m
}

func (n *node) try(id string, s Step) (*Move, error) {
	n.t.Helper()
	m, err := n.Get(id)
	require.NoError(n.t, err)
	return n.Advance(bg, id, m.Version, s)
}

// bring makes a move go on until it is in a state.
func (n *node) bring(id string, to State) *Move {
	n.t.Helper()
	m, err := n.Get(id)
	require.NoError(n.t, err)
	for i := 0; m.State != to; i++ {
		require.Less(n.t, i, 12, "%s does not lead to %s", m.State, to)
		switch k := kindOf(&m.Spec); {
		case m.State == Planned && k == kindRepair, m.State == Tailing:
			m = n.step(id, Step{State: Verifying})
		case m.State == Planned:
			m, err = n.MarkPinned(bg, id, 100)
		case m.State == Pinned:
			m = n.step(id, Step{State: Copying})
		case m.State == Copying:
			m = n.step(id, Step{State: Tailing, TailSequence: 150})
		case m.State == Verifying && m.VerifiedAt == 0:
			m = n.step(id, Step{Verified: true})
		case m.State == Verifying && k == kindHandOver:
			m, err = n.MarkFenced(bg, id, 200)
		case m.State == Verifying && k == kindFollow && !m.Finishing:
			_, err = n.Finish(bg, id)
			require.NoError(n.t, err)
			m = n.step(id, Step{Verified: true})
		case m.State == Verifying:
			m = n.step(id, Step{State: Committed})
		case m.State == Fenced:
			m = n.step(id, Step{State: Accepted, TailSequence: 200, Epoch: 1})
		case m.State == Accepted:
			m, err = n.MarkGiven(bg, id)
		case m.State == Committed:
			m, err = n.MarkReleased(bg, id)
		}
		require.NoError(n.t, err)
	}
	return m
}

// words says of each move what it is.
func (n *node) words() string {
	var out []string
	for _, m := range n.View().Moves {
		out = append(out, fmt.Sprintf("%s:%d:%s", m.ID, m.Version, m.State))
	}
	return strings.Join(out, " ")
}

// Danger: a move that a restart forgets, half-forgets or begins anew: the cursor or the fence is lost.
func TestMovesSurviveARestartInEachState(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	full := spec("full", stream)
	full.What = Selection{Tenant: "shop", Start: "a", End: "b\t<&>\"\\\u2028", HashRanges: []ring.HashRange{{Start: 1 << 63, End: 5}, {Start: 7, End: 1<<64 - 1}}}
	full.Target.Addr, full.MaxBytesPerSecond, full.Parent = "n2.pods:8080", 1<<20, "some-parent"
	n.create(full)
	progress := Progress{CopiedRecords: 1, CopiedBytes: 2, TailedRecords: 3, TailedBytes: 4, TotalBytes: 5, ResentBytes: 6, BytesPerSecond: 7,
		RemainingSeconds: -1, LagRecords: 9, LagMS: 10, ComparedKeys: 11, RepairedKeys: 12, Resumes: 13}
	n.bring("full", Copying)
	n.step("full", Step{HasCursor: true, CopyCursor: []byte{0, 255, 7}, TailSequence: 120, Reason: "waits", Progress: &progress})
	keys := spec("keys")
	keys.What = Selection{Tenant: "shop", Keys: []string{"b", "a", "ä\n"}}
	n.create(keys)
	for _, life := range lives {
		for _, s := range States {
			if s == Failed || s == Cancelled {
				continue
			}
			id := strings.ToLower(life.name + "." + s.String())
			one := life.spec
			one.ID, one.Target.NodeID = id, "n2"
			if kindOf(&one) == kindHandOver {
				at := uint64(s) * 100
				one.What.HashRanges = []ring.HashRange{{Start: at, End: at + 100}}
			}
			if s == Fenced && life.name != "hand-over" || s == Accepted && life.name != "hand-over" ||
				life.name == "repair" && s > Planned && s < Verifying {
				continue
			}
			n.create(one)
			n.bring(id, s)
		}
	}
	_, err := n.try("copy.tailing", Step{State: Failed, Reason: "no room"})
	require.NoError(t, err)
	_, _, err = n.Cancel(bg, "copy.planned", "not needed")
	require.NoError(t, err)
	_, _, err = n.Cancel(bg, "hand-over.fenced", "later")
	require.NoError(t, err)
	_, err = n.Finish(bg, "follow.tailing")
	require.NoError(t, err)
	before := n.View().Moves
	require.Greater(t, len(before), 25)

	for range 2 {
		n = restart(t, n, fs)
		require.NoError(t, n.Damage())
		after := n.View().Moves
		require.Len(t, after, len(before))
		for i := range before {
			want := *before[i]
			want.ProgressAt = 0
			require.Equal(t, &want, after[i])
		}
	}
	m, err := n.Get("full")
	require.NoError(t, err)
	require.Equal(t, full, m.Spec)
	require.Equal(t, progress, m.Progress)
	require.Equal(t, []byte{0, 255, 7}, m.CopyCursor)
	failed, err := n.Get("copy.tailing")
	require.NoError(t, err)
	require.Equal(t, []any{Failed, Tailing, "no room"}, []any{failed.State, failed.ResumeState, failed.Reason})
}

// Danger: a repeat of a call makes a second copy, or a call with the id of another one changes that.
func TestCreateIsRepeatedSafely(t *testing.T) {
	n := start(t, vfs.NewMem())
	s := spec("m1")
	s.What = Selection{Tenant: "shop", Keys: []string{"a"}}
	first := n.create(s)
	require.Equal(t, Planned, first.State)
	require.EqualValues(t, 1, first.Version)
	require.EqualValues(t, 1_700_000_000_000, first.CreatedAt)
	n.bring("m1", Released)
	writes := n.engine.written()
	again := n.create(s)
	require.Equal(t, Released, again.State, "as it is now, also when it is over")
	require.Equal(t, writes, n.engine.written(), "nothing is written")
	for name, change := range map[string]func(*Spec){
		"purpose": func(s *Spec) { s.Purpose = PurposeBootstrap },
		"mode":    follow,
		"tenant":  func(s *Spec) { s.What.Tenant = "other" },
		"keys":    func(s *Spec) { s.What.Keys = []string{"b"} },
		"range":   func(s *Spec) { s.What.Keys, s.What.Start = nil, "a" },
		"hash":    func(s *Spec) { s.What.HashRanges = []ring.HashRange{{Start: 1, End: 2}} },
		"target":  func(s *Spec) { s.Target.NodeID = "n3" },
		"address": func(s *Spec) { s.Target.Addr = "n2:8080" },
		"limit":   func(s *Spec) { s.MaxBytesPerSecond = 1 << 20 },
		"parent":  func(s *Spec) { s.Parent = "p" },
		"hand":    handOver(ring.HashRange{Start: 1, End: 2}),
	} {
		other := s
		change(&other)
		_, err := n.Create(bg, other)
		requireReason(t, store.ReasonMoveExists, err)
		// All or none.
		_, err = n.Create(bg, spec("m2"), other)
		requireReason(t, store.ReasonMoveExists, err)
		_, err = n.Get("m2")
		requireReason(t, store.ReasonMoveNotFound, err)
		require.Equal(t, "m1:8:RELEASED", n.words(), name)
	}
	d := n.drain()
	_, err := n.Create(bg, spec(d.ID))
	requireReason(t, store.ReasonMoveExists, err)
}

// Danger: the moves of one call seem to have been asked for one after the other, or to have changed since.
func TestAllOfAChangeHappensAtOneTime(t *testing.T) {
	ticking := &wall{now: time.UnixMilli(1_700_000_000_000)}
	n := start(t, vfs.NewMem(), func(o *Options) {
		o.Now = func() time.Time { ticking.move(time.Millisecond); return ticking.Now() }
	})
	all, err := n.Create(bg, spec("m1"), spec("m2"))
	require.NoError(t, err)
	for _, m := range all {
		require.Equal(t, [2]int64{all[0].CreatedAt, all[0].CreatedAt}, [2]int64{m.CreatedAt, m.UpdatedAt}, m.ID)
	}
	d := n.drain()
	require.Equal(t, d.CreatedAt, d.UpdatedAt)
	require.Greater(t, d.CreatedAt, all[0].CreatedAt)
}

// drain begins one on a node that is up.
func (n *node) drain() *Drain {
	n.t.Helper()
	if n.Wanted() == membership.Joining {
		require.NoError(n.t, n.Declare(bg, membership.Joining, membership.Up))
	}
	d, err := n.StartDrain(bg, "scale down", "")
	require.NoError(n.t, err)
	return d
}

// Danger: a coordinator that asks again, because it lost the answer, has each change sent twice from then on.
func TestStreamIsRepeatedByItsTargetAndSelection(t *testing.T) {
	n := start(t, vfs.NewMem())
	first := n.create(spec("s1", stream))
	require.Equal(t, first, n.create(spec("s2", stream)))
	for i, other := range []Spec{
		spec("o1", stream, func(s *Spec) { s.Target.NodeID = "n3" }),
		spec("o2", stream, func(s *Spec) { s.What.Tenant = "shop" }),
		spec("o3", follow), // an operator's is his own
		spec("o4", func(s *Spec) { s.Purpose = PurposeStream }),
	} {
		require.Equal(t, other.ID, n.create(other).ID, i)
	}
	_, _, err := n.Cancel(bg, "s1", "")
	require.NoError(t, err)
	require.Equal(t, "s2", n.create(spec("s2", stream)).ID, "what is over is not what is asked for")
	_, err = n.Finish(bg, "s2")
	require.NoError(t, err)
	require.Equal(t, "s3", n.create(spec("s3", stream)).ID, "nor is what ends")
}

// Danger: two moves give one range to two owners.
func TestRangesAreHandedOverOnce(t *testing.T) {
	n := start(t, vfs.NewMem())
	d := n.drain()
	of := func(id string, ranges ...ring.HashRange) Spec {
		return spec(id, handOver(ranges...), func(s *Spec) { s.Parent = d.ID })
	}
	n.create(of("a", ring.HashRange{Start: 100, End: 200}, ring.HashRange{Start: 1 << 63, End: 10}))
	for _, r := range []ring.HashRange{{Start: 199, End: 300}, {Start: 50, End: 101}, {Start: 0, End: 1}, {Start: 9, End: 11}, {}, {Start: 300, End: 0}, {Start: 150, End: 150}} {
		_, err := n.Create(bg, of("b", r))
		requireReason(t, store.ReasonMovesOverlap, err)
		require.Equal(t, "a", err.(*store.Error).Metadata["move_id"])
		// Two of one call neither.
		_, err = n.Create(bg, of("c", ring.HashRange{Start: 20, End: 30}), of("d", ring.HashRange{Start: 29, End: 40}))
		requireReason(t, store.ReasonMovesOverlap, err)
	}
	n.create(of("e", ring.HashRange{Start: 200, End: 300}), of("f", ring.HashRange{Start: 10, End: 100}))
	n.create(spec("copy", func(s *Spec) { s.What.HashRanges = []ring.HashRange{{}} })) // a copy takes nothing away
	_, _, err := n.Cancel(bg, "a", "")
	require.NoError(t, err)
	n.create(of("g", ring.HashRange{Start: 100, End: 200}))
	n.bring("g", Released)
	n.create(of("h", ring.HashRange{Start: 100, End: 200}))
}

// Danger: a request without sense is stored and is in the way for ever; or half of it counts.
func TestMoveThatIsNoneIsRefused(t *testing.T) {
	n := start(t, vfs.NewMem())
	long := func(n int) string { return strings.Repeat("x", n) }
	hash := func(n int) (out []ring.HashRange) {
		for i := range n {
			out = append(out, ring.HashRange{Start: uint64(2 * i), End: uint64(2*i) + 1})
		}
		return out
	}
	for name, s := range map[string]Spec{
		"no id":            spec(""),
		"long id":          spec(long(65)),
		"bad id":           spec("A"),
		"slash":            spec("a/b"),
		"bad parent":       spec("m", func(s *Spec) { s.Parent = "P" }),
		"no purpose":       spec("m", func(s *Spec) { s.Purpose = 0 }),
		"purpose":          spec("m", func(s *Spec) { s.Purpose = PurposeStream + 1 }),
		"no mode":          spec("m", func(s *Spec) { s.Mode = 0 }),
		"mode":             spec("m", func(s *Spec) { s.Mode = Follow + 1 }),
		"slow":             spec("m", func(s *Spec) { s.MaxBytesPerSecond = 65535 }),
		"negative":         spec("m", func(s *Spec) { s.MaxBytesPerSecond = -1 }),
		"fast":             spec("m", func(s *Spec) { s.MaxBytesPerSecond = 1<<50 + 1 }),
		"system tenant":    spec("m", func(s *Spec) { s.What.Tenant = "_moves" }),
		"bad tenant":       spec("m", func(s *Spec) { s.What.Tenant = "a:b" }),
		"range, no tenant": spec("m", func(s *Spec) { s.What.End = "a" }),
		"keys, no tenant":  spec("m", func(s *Spec) { s.What.Keys = []string{"a"} }),
		"keys and range":   spec("m", func(s *Spec) { s.What = Selection{Tenant: "t", Keys: []string{"a"}, Start: "a"} }),
		"empty range":      spec("m", func(s *Spec) { s.What = Selection{Tenant: "t", Start: "a", End: "a"} }),
		"bad bound":        spec("m", func(s *Spec) { s.What = Selection{Tenant: "t", Start: "\x00"} }),
		"bad key":          spec("m", func(s *Spec) { s.What = Selection{Tenant: "t", Keys: []string{"a", "\xff"}} }),
		"empty key":        spec("m", func(s *Spec) { s.What = Selection{Tenant: "t", Keys: []string{""}} }),
		"many keys":        spec("m", func(s *Spec) { s.What = Selection{Tenant: "t", Keys: strings.Split(long(10_001), "")} }),
		"long keys": spec("m", func(s *Spec) {
			s.What = Selection{Tenant: "t", Keys: strings.Split(strings.Repeat(long(1000)+"|", 1050)+"a", "|")}
		}),
		"many ranges":        spec("m", func(s *Spec) { s.What.HashRanges = hash(4097) }),
		"repair follows":     spec("m", repair, follow),
		"repair hands over":  spec("m", handOver(hash(1)...), repair),
		"follow hands over":  spec("m", handOver(hash(1)...), follow),
		"all handed over":    spec("m", handOver()),
		"tenant handed over": spec("m", handOver(hash(1)...), func(s *Spec) { s.What.Tenant = "t" }),
		"overlaps itself":    spec("m", handOver(ring.HashRange{Start: 1, End: 5}, ring.HashRange{Start: 4, End: 6})),
		"wraps into itself":  spec("m", handOver(ring.HashRange{Start: 9, End: 5}, ring.HashRange{Start: 4, End: 6})),
	} {
		_, err := n.Create(bg, s)
		require.Equal(t, store.ReasonMove, store.ReasonOf(err), "%s: %v", name, err)
		require.NotEmpty(t, err.(*store.Error).Message)
	}
	for name, target := range map[string]Target{
		"none": {}, "itself": {NodeID: "n1"}, "bad": {NodeID: "a/b"}, "long": {NodeID: long(101)}, "no port": {NodeID: "n2", Addr: "n2"},
		"port 0": {NodeID: "n2", Addr: "n2:0"}, "word": {NodeID: "n2", Addr: "n2:http"}, "no host": {NodeID: "n2", Addr: ":80"},
		"space": {NodeID: "n2", Addr: "a b:80"}, "long address": {NodeID: "n2", Addr: long(260) + ":8080"},
	} {
		_, err := n.Create(bg, spec("m", func(s *Spec) { s.Target = target }))
		require.Equal(t, store.ReasonTarget, store.ReasonOf(err), "%s: %v", name, err)
	}
	require.Empty(t, n.View().Moves)
	require.Zero(t, n.engine.written())

	// What is just allowed.
	n.create(spec(long(64), func(s *Spec) {
		s.What = Selection{Tenant: long(256), Keys: strings.Split(strings.Repeat(long(100)+"|", 9999)+"a", "|"), HashRanges: hash(500)}
		s.Target = Target{NodeID: long(100), Addr: long(254) + ":65535"}
		s.MaxBytesPerSecond, s.Parent = 65536, "a-0."
	}))
	n.create(spec("whole", handOver(ring.HashRange{})))
}

// Danger: moves fill the memory of the node, or those that are over take the room of new ones.
func TestMovesAreBounded(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	var all []Spec
	for i := range MaxActive {
		all = append(all, spec(fmt.Sprintf("m%02d", i)))
	}
	n.create(all...)
	_, err := n.Create(bg, spec("more"))
	requireReason(t, store.ReasonTooManyMoves, err)
	require.Positive(t, err.(*store.Error).RetryAfter)
	n.create(all...) // a repeat is none more
	_, _, err = n.Cancel(bg, "m07", "")
	require.NoError(t, err)
	n.create(spec("more"))
	for _, m := range n.List(false) {
		_, _, err := n.Cancel(bg, m.ID, "")
		require.NoError(t, err)
	}

	// What is large together.
	large := func(id string) Spec {
		return spec(id, func(s *Spec) {
			s.What = Selection{Tenant: "t", Keys: strings.Split(strings.Repeat(strings.Repeat("k", 1000)+"|", 1000)+"a", "|")}
		})
	}
	for i := range 16 {
		n.create(large(fmt.Sprintf("large%02d", i)))
	}
	_, err = n.Create(bg, large("large16"))
	requireReason(t, store.ReasonTooManyMoves, err)
	for i := range 16 {
		n.wall.move(time.Second)
		_, _, err := n.Cancel(bg, fmt.Sprintf("large%02d", i), "")
		require.NoError(t, err)
	}
	n.create(large("large16"))
	_, _, err = n.Cancel(bg, "large16", "")
	require.NoError(t, err)
	_, err = n.Get("large00")
	requireReason(t, store.ReasonMoveNotFound, err)
	_, err = n.Get("large01")
	require.NoError(t, err)

	n = restart(t, n, fs)
	require.NoError(t, n.Damage(), "nothing is left of what is forgotten")
	_, err = n.Get("large00")
	requireReason(t, store.ReasonMoveNotFound, err)
}

// Danger: the node remembers every move there ever was.
func TestOldestOfThoseThatAreOverAreForgotten(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	for i := range MaxEnded + 3 {
		n.wall.move(time.Millisecond)
		n.create(spec(fmt.Sprintf("m%d", i)))
		_, _, err := n.Cancel(bg, fmt.Sprintf("m%d", i), "")
		require.NoError(t, err)
	}
	require.Len(t, n.View().Moves, MaxEnded)
	require.Equal(t, "m1002", n.View().Moves[0].ID)
	n = restart(t, n, fs)
	require.NoError(t, n.Damage())
	require.Len(t, n.View().Moves, MaxEnded)
	_, err := n.Get("m2")
	requireReason(t, store.ReasonMoveNotFound, err)
	require.Empty(t, n.List(false))
	n.create(spec("m2")) // its id is free again
}

// Danger: two migrators, or one and an operator, undo each other's steps.
func TestAdvanceIsOfTheVersionThatWasSeen(t *testing.T) {
	n := start(t, vfs.NewMem())
	m := n.create(spec("m"))
	_, err := n.Advance(bg, "m", m.Version+1, Step{State: Failed, Reason: "x"})
	requireReason(t, store.ReasonMoveChanged, err)
	_, err = n.Advance(bg, "m", 0, Step{Progress: &Progress{}})
	requireReason(t, store.ReasonMoveChanged, err)
	_, err = n.Advance(bg, "other", 1, Step{})
	requireReason(t, store.ReasonMoveNotFound, err)
	next := n.step("m", Step{Reason: "waits for n2"})
	require.EqualValues(t, m.Version+1, next.Version)
	require.EqualValues(t, 1, m.Version, "what was handed out does not change")
	_, err = n.Advance(bg, "m", m.Version, Step{Reason: "again"})
	requireReason(t, store.ReasonMoveChanged, err)

	for name, s := range map[string]Step{
		"state":    {State: Cancelled + 1},
		"cursor":   {HasCursor: true, CopyCursor: make([]byte, MaxCursorBytes+1)},
		"reason":   {Reason: strings.Repeat("x", 1001)},
		"control":  {Reason: "a\x1b[31m"},
		"progress": {Progress: &Progress{CopiedBytes: -1}},
		"lag":      {Progress: &Progress{LagMS: -2}},
	} {
		_, err := n.try("m", s)
		require.Equal(t, store.ReasonMove, store.ReasonOf(err), "%s: %v", name, err)
	}
	require.Equal(t, "m:2:PLANNED", n.words())
}

// Danger: progress, which is told each second, is written each second; or wakes everybody.
func TestProgressIsKeptInMemory(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	n.create(spec("m"))
	v := n.View()
	writes := n.engine.written()
	m := n.step("m", Step{Progress: &Progress{CopiedBytes: 10, LagMS: -1, RemainingSeconds: -1}})
	require.EqualValues(t, 1, m.Version)
	require.EqualValues(t, 10, m.Progress.CopiedBytes)
	require.Equal(t, writes, n.engine.written())
	<-v.Touched
	select {
	case <-v.Changed:
		t.Fatal("nothing durable has changed")
	default:
	}
	require.EqualValues(t, 10, n.Counts().Bytes)
	n.step("m", Step{Progress: &Progress{CopiedBytes: 10, TailedBytes: 5, ResentBytes: 1}})
	require.EqualValues(t, 16, n.Counts().Bytes)
	n.step("m", Step{Progress: &Progress{CopiedBytes: 3}})
	require.EqualValues(t, 16, n.Counts().Bytes, "a migrator that begins to count anew takes nothing away")
	// With a step that is durable it is durable too.
	n.step("m", Step{Reason: "x", Progress: &Progress{CopiedBytes: 7}})
	<-v.Changed
	n.step("m", Step{Progress: &Progress{CopiedBytes: 8}})
	require.Equal(t, "x", n.step("m", Step{Progress: &Progress{CopiedBytes: 9}}).Reason, "progress alone says nothing of the reason")
	n = restart(t, n, fs)
	m, err := n.Get("m")
	require.NoError(t, err)
	require.EqualValues(t, 7, m.Progress.CopiedBytes)
}

// Danger: a state without what it stands for: a move is committed that nobody compared, or accepted while
// the target lacks what was written before the fence.
func TestStateHasWhatItStandsFor(t *testing.T) {
	n := start(t, vfs.NewMem())
	n.create(spec("m"))
	_, err := n.MarkPinned(bg, "m", 0)
	requireReason(t, store.ReasonMoveState, err)
	_, err = n.try("m", Step{HasCursor: true, CopyCursor: []byte("c")})
	requireReason(t, store.ReasonMoveState, err)
	_, err = n.try("m", Step{Verified: true})
	requireReason(t, store.ReasonMoveState, err)
	n.bring("m", Verifying)
	_, err = n.try("m", Step{State: Committed})
	requireReason(t, store.ReasonMoveState, err)
	_, err = n.try("m", Step{State: Failed})
	requireReason(t, store.ReasonMoveState, err)
	require.Equal(t, Committed, n.step("m", Step{State: Committed, Verified: true}).State)

	n.create(spec("h", handOver(ring.HashRange{Start: 1, End: 2})))
	n.bring("h", Verifying)
	_, err = n.MarkFenced(bg, "h", 200)
	requireReason(t, store.ReasonMoveState, err) // nothing is handed over that was not compared
	n.step("h", Step{Verified: true})
	_, err = n.MarkFenced(bg, "h", 0)
	requireReason(t, store.ReasonMoveState, err)
	_, err = n.MarkFenced(bg, "h", 200)
	require.NoError(t, err)
	for _, s := range []Step{{State: Accepted, Epoch: 1}, {State: Accepted, Epoch: 1, TailSequence: 199}, {State: Accepted, TailSequence: 200}} {
		_, err = n.try("h", s)
		requireReason(t, store.ReasonMoveState, err)
	}
	_, err = n.MarkGiven(bg, "h")
	requireReason(t, store.ReasonMoveState, err)
	require.EqualValues(t, 200, n.step("h", Step{State: Accepted, Epoch: 3, TailSequence: 200}).TailSequence)
	require.EqualValues(t, 200, n.step("h", Step{TailSequence: 100, Reason: "x"}).TailSequence, "it never falls")

	n.create(spec("f", follow))
	n.bring("f", Verifying)
	_, err = n.try("f", Step{State: Committed, Verified: true})
	requireReason(t, store.ReasonMoveState, err) // it follows
	n.step("f", Step{Verified: true})
	require.Equal(t, Tailing, n.step("f", Step{State: Tailing}).State)
	m, err := n.Finish(bg, "f")
	require.NoError(t, err)
	require.True(t, m.Finishing)
	_, err = n.try("f", Step{State: Committed})
	requireReason(t, store.ReasonMoveState, err) // verified once more, after it was to end
	require.Equal(t, Committed, n.step("f", Step{State: Committed, Verified: true}).State)
	_, err = n.Finish(bg, "f")
	require.NoError(t, err, "a repeat")
	_, err = n.Finish(bg, "m")
	requireReason(t, store.ReasonMoveState, err)

	// A target that can't be compared: the reason stands for the verification of copies, and of nothing else.
	unverified := Step{State: Committed, Reason: notVerified + "it has no means to compare"}
	n.create(spec("u"))
	n.bring("u", Verifying)
	_, err = n.try("u", Step{State: Committed, Reason: "verified enough"})
	requireReason(t, store.ReasonMoveState, err)
	m = n.step("u", unverified)
	require.Equal(t, Committed, m.State)
	require.Zero(t, m.VerifiedAt)

	n.create(spec("r", repair))
	n.step("r", Step{State: Verifying})
	_, err = n.try("r", unverified)
	requireReason(t, store.ReasonMoveState, err)
	_, err = n.try("r", Step{State: Committed})
	requireReason(t, store.ReasonMoveState, err)
	n.step("r", Step{State: Committed, Verified: true})
}

// Danger: a step of the node that is repeated, because its answer was lost, is refused or does something
// else than the first time.
func TestStepsOfTheNodeCanBeRepeated(t *testing.T) {
	n := start(t, vfs.NewMem())
	n.create(spec("h", handOver(ring.HashRange{Start: 1, End: 2})))
	for _, seq := range []uint64{100, 105} {
		m, err := n.MarkPinned(bg, "h", seq)
		require.NoError(t, err)
		require.EqualValues(t, 100, m.PinnedSequence)
		require.EqualValues(t, 2, m.Version)
	}
	n.bring("h", Fenced)
	m, err := n.MarkPinned(bg, "h", 300)
	require.NoError(t, err)
	require.EqualValues(t, 100, m.PinnedSequence)
	m, err = n.MarkFenced(bg, "h", 200)
	require.NoError(t, err)
	version := m.Version
	m, err = n.MarkFenced(bg, "h", 200)
	require.NoError(t, err)
	require.Equal(t, version, m.Version)
	m, err = n.MarkFenced(bg, "h", 230) // fenced anew: what came between counts
	require.NoError(t, err)
	require.EqualValues(t, 230, m.FenceSequence)
	_, err = n.try("h", Step{State: Accepted, Epoch: 1, TailSequence: 200})
	requireReason(t, store.ReasonMoveState, err)
	n.step("h", Step{State: Accepted, Epoch: 1, TailSequence: 230})
	require.Error(t, n.MayRelease("h"))
	_, err = n.MarkReleased(bg, "h")
	requireReason(t, store.ReasonMoveState, err)
	for range 2 {
		m, err = n.MarkGiven(bg, "h")
		require.NoError(t, err)
		require.Equal(t, Committed, m.State)
	}
	require.True(t, n.Holds("h"))
	require.NoError(t, n.MayRelease("h"))
	for range 2 {
		m, err = n.MarkReleased(bg, "h")
		require.NoError(t, err)
		require.Equal(t, Released, m.State)
	}
	require.False(t, n.Holds("h"))
	m, err = n.MarkGiven(bg, "h")
	require.NoError(t, err)
	require.Equal(t, Released, m.State)
	_, err = n.MarkFenced(bg, "h", 500)
	requireReason(t, store.ReasonMoveState, err)
	_, err = n.MarkPinned(bg, "h", 500)
	requireReason(t, store.ReasonMoveState, err)
	require.NoError(t, n.MayRelease("nobody"), "what is not known holds nothing")
	for _, mark := range []func() (*Move, error){
		func() (*Move, error) { return n.MarkPinned(bg, "x", 1) },
		func() (*Move, error) { return n.MarkFenced(bg, "x", 1) },
		func() (*Move, error) { return n.MarkLifted(bg, "x") },
		func() (*Move, error) { return n.MarkGiven(bg, "x") },
		func() (*Move, error) { return n.MarkReleased(bg, "x") },
		func() (*Move, error) { return n.Finish(bg, "x") },
		func() (*Move, error) { return n.Resume(bg, "x") },
	} {
		_, err := mark()
		requireReason(t, store.ReasonMoveNotFound, err)
	}
}

// Danger: a move whose place in the log is lost goes on from a cursor that means nothing any more, and
// never sends what changed between.
func TestMoveThatBeginsAnewForgetsWhereItWas(t *testing.T) {
	n := start(t, vfs.NewMem())
	n.create(spec("h", handOver(ring.HashRange{Start: 1, End: 2})))
	n.bring("h", Copying)
	n.step("h", Step{HasCursor: true, CopyCursor: []byte("c")})
	n.bring("h", Verifying)
	n.step("h", Step{Verified: true})
	m := n.step("h", Step{State: Planned, Reason: "its place in the log is lost"})
	require.Equal(t, []any{Planned, uint64(0), []byte(nil), uint64(0), int64(0)}, []any{m.State, m.PinnedSequence, m.CopyCursor, m.TailSequence, m.VerifiedAt})
	require.NoError(t, n.MayRelease("h"))
	m, err := n.MarkReleased(bg, "h")
	require.NoError(t, err)
	require.Equal(t, Planned, m.State)
	m, err = n.MarkPinned(bg, "h", 400)
	require.NoError(t, err)
	require.EqualValues(t, 400, m.PinnedSequence)
	n.bring("h", Fenced)
	_, err = n.try("h", Step{State: Planned})
	requireReason(t, store.ReasonMoveState, err) // the target may have it
}

// Danger: a failed move is carried on as if nothing were wrong, or resumed somewhere else.
func TestFailedMoveGoesOnWhereItStood(t *testing.T) {
	n := start(t, vfs.NewMem())
	n.create(spec("h", handOver(ring.HashRange{Start: 1, End: 2})))
	for _, s := range []State{Planned, Pinned, Copying, Tailing, Verifying, Fenced, Accepted, Committed} {
		n.bring("h", s)
		m := n.step("h", Step{State: Failed, Reason: "why"})
		require.Equal(t, []any{Failed, s, "why"}, []any{m.State, m.ResumeState, m.Reason})
		for _, to := range States {
			_, err := n.try("h", Step{State: to, Reason: "other", Epoch: 9})
			requireReason(t, store.ReasonMoveState, err)
		}
		for _, mark := range []func() (*Move, error){
			func() (*Move, error) { return n.MarkPinned(bg, "h", 1) },
			func() (*Move, error) { return n.MarkFenced(bg, "h", 1) },
			func() (*Move, error) { return n.MarkGiven(bg, "h") },
			func() (*Move, error) { return n.MarkReleased(bg, "h") },
		} {
			_, err := mark()
			requireReason(t, store.ReasonMoveState, err)
		}
		require.True(t, n.Holds("h"))
		m, err := n.Resume(bg, "h")
		require.NoError(t, err)
		require.Equal(t, []any{s, State(0), ""}, []any{m.State, m.ResumeState, m.Reason})
		again, err := n.Resume(bg, "h")
		require.NoError(t, err)
		require.Equal(t, m, again)
	}
	n.bring("h", Released)
	_, err := n.Resume(bg, "h")
	requireReason(t, store.ReasonMoveState, err)
	require.EqualValues(t, 8, n.Counts().Ended[PurposeDrain][Stuck])
	require.EqualValues(t, 1, n.Counts().Ended[PurposeDrain][Completed])
}

// Danger: a range has two owners, because its move was called off while the target had taken it; or a fence
// outlives the move and nobody may write.
func TestCancelIsSafeInEachState(t *testing.T) {
	n := start(t, vfs.NewMem())
	made := 0
	at := func(s State, failed bool) string {
		made++
		id := fmt.Sprintf("h%d", made)
		from := uint64(made) * 10
		n.create(spec(id, handOver(ring.HashRange{Start: from, End: from + 1})))
		n.bring(id, s)
		if failed {
			n.step(id, Step{State: Failed, Reason: "x"})
		}
		return id
	}
	for _, failed := range []bool{false, true} {
		for _, s := range []State{Planned, Pinned, Copying, Tailing, Verifying} {
			id := at(s, failed)
			off, drain, err := n.Cancel(bg, id, "why")
			require.NoError(t, err)
			require.Nil(t, drain)
			require.Equal(t, []any{Cancelled, "why", false}, []any{off[0].State, off[0].Reason, off[0].Cancelling})
			again, _, err := n.Cancel(bg, id, "other")
			require.NoError(t, err)
			require.Equal(t, off, again)
			// The fence that was on its way.
			_, err = n.MarkFenced(bg, id, 9)
			requireReason(t, store.ReasonMoveState, err)
			_, err = n.try(id, Step{State: Verifying})
			requireReason(t, store.ReasonMoveState, err)
			require.NoError(t, n.MayLift(id))
			require.NoError(t, n.MayRelease(id))
			m, err := n.MarkReleased(bg, id)
			require.NoError(t, err)
			require.Equal(t, Cancelled, m.State)
		}
		for _, s := range []State{Accepted, Committed} {
			id := at(s, failed)
			_, _, err := n.Cancel(bg, id, "why")
			requireReason(t, store.ReasonMoveState, err)
			requireReason(t, store.ReasonMoveState, n.MayLift(id))
			_, err = n.MarkLifted(bg, id)
			requireReason(t, store.ReasonMoveState, err)
		}

		// The target may have it: the fence holds until it has declined.
		id := at(Fenced, failed)
		off, _, err := n.Cancel(bg, id, "why")
		require.NoError(t, err)
		require.Equal(t, []any{Fenced, true, "why"}, []any{off[0].State, off[0].Cancelling, off[0].Reason})
		require.True(t, n.Holds(id))
		again, _, err := n.Cancel(bg, id, "other")
		require.NoError(t, err)
		require.Equal(t, off, again)
		m, err := n.MarkLifted(bg, id)
		require.NoError(t, err)
		require.Equal(t, []any{Cancelled, false, uint64(0)}, []any{m.State, m.Cancelling, m.FenceSequence})
		m, err = n.MarkLifted(bg, id)
		require.NoError(t, err)
		require.Equal(t, Cancelled, m.State)

		// It had: the move goes on.
		id = at(Fenced, failed)
		_, _, err = n.Cancel(bg, id, "why")
		require.NoError(t, err)
		m = n.step(id, Step{State: Accepted, Epoch: 1, TailSequence: 200})
		require.False(t, m.Cancelling)
		require.Equal(t, Released, n.bring(id, Released).State)
		_, _, err = n.Cancel(bg, id, "why")
		requireReason(t, store.ReasonMoveState, err)
	}
	// A fence that is lifted without a cancel leads back.
	id := at(Fenced, false)
	m, err := n.MarkLifted(bg, id)
	require.NoError(t, err)
	require.Equal(t, []any{Verifying, uint64(0)}, []any{m.State, m.FenceSequence})
	n.bring(id, Fenced)
	n.step(id, Step{State: Failed, Reason: "x"})
	m, err = n.MarkLifted(bg, id)
	require.NoError(t, err)
	require.Equal(t, []any{Failed, Verifying}, []any{m.State, m.ResumeState})
	n.create(spec("copy"))
	n.bring("copy", Committed)
	m, err = n.MarkLifted(bg, "copy")
	require.NoError(t, err, "one that hands nothing over has no fence")
	require.Equal(t, Committed, m.State)

	_, _, err = n.Cancel(bg, "nobody", "")
	requireReason(t, store.ReasonMoveNotFound, err)
	_, _, err = n.Cancel(bg, "copy", strings.Repeat("x", 1001))
	requireReason(t, store.ReasonMove, err)
}

// Danger: a drain goes on twice, ends before its moves, or a cancelled one leaves the node out of the ring.
func TestDrain(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	_, err := n.StartDrain(bg, "why", "")
	requireReason(t, store.ReasonMoveState, err) // it joins and owns nothing
	require.Nil(t, n.Drain())
	d := n.drain()
	require.Regexp(t, "^drain-[a-z2-7]{8}$", d.ID)
	require.Equal(t, DrainRequested, d.State)
	again, err := n.StartDrain(bg, "other", "forced")
	require.NoError(t, err)
	require.Equal(t, d, again)

	requireReason(t, store.ReasonMoveChanged, n.Declare(bg, membership.Draining, membership.Drained))
	require.NoError(t, n.Declare(bg, membership.Up, membership.Draining))
	require.NoError(t, n.Declare(bg, membership.Up, membership.Draining), "a repeat")
	requireReason(t, store.ReasonMoveState, n.Declare(bg, membership.Draining, membership.Up)) // a drain is called off by Cancel
	requireReason(t, store.ReasonMoveState, n.Declare(bg, membership.Draining, membership.Drained))

	move := func(id string, from uint64) {
		n.create(spec(id, handOver(ring.HashRange{Start: from, End: from + 10}), func(s *Spec) { s.Parent = d.ID }))
	}
	move("a", 0)
	move("b", 10)
	_, err = n.AdvanceDrain(bg, d.ID, d.Version+1, DrainStep{State: DrainMoving})
	requireReason(t, store.ReasonMoveChanged, err)
	_, err = n.AdvanceDrain(bg, d.ID, d.Version, DrainStep{State: DrainCompleted})
	requireReason(t, store.ReasonMoveState, err)
	d, err = n.AdvanceDrain(bg, d.ID, d.Version, DrainStep{State: DrainMoving, MovesTotal: 2, Reason: "two moves"})
	require.NoError(t, err)
	require.Equal(t, []any{DrainMoving, 0, 2, "two moves"}, []any{d.State, d.MovesDone, d.MovesTotal, d.Reason})
	n.bring("a", Released)
	requireReason(t, store.ReasonMoveState, n.Declare(bg, membership.Draining, membership.Drained)) // b is not there yet
	n.bring("b", Accepted)
	requireReason(t, store.ReasonMoveState, n.Declare(bg, membership.Draining, membership.Drained))
	_, err = n.AdvanceDrain(bg, d.ID, d.Version, DrainStep{State: DrainCompleted})
	requireReason(t, store.ReasonMoveState, err)
	n.bring("b", Committed)

	n = restart(t, n, fs)
	require.Equal(t, membership.Draining, n.Wanted())
	require.Equal(t, d, n.Drain())
	require.NoError(t, n.Declare(bg, membership.Draining, membership.Drained))
	_, _, err = n.Cancel(bg, d.ID, "too late")
	requireReason(t, store.ReasonMoveState, err)
	d, err = n.AdvanceDrain(bg, d.ID, d.Version, DrainStep{State: DrainCompleted, MovesDone: 2, MovesTotal: 2})
	require.NoError(t, err)
	require.Nil(t, n.Drain())
	_, err = n.AdvanceDrain(bg, d.ID, d.Version, DrainStep{Reason: "x"})
	requireReason(t, store.ReasonMoveState, err)
	_, err = n.StartDrain(bg, "again", "")
	requireReason(t, store.ReasonDrainExists, err)
	for _, to := range []membership.State{membership.Up, membership.Joining, membership.Draining} {
		requireReason(t, store.ReasonMoveState, n.Declare(bg, membership.Drained, to))
	}
	n = restart(t, n, fs)
	require.Equal(t, membership.Drained, n.Wanted())
	require.Equal(t, DrainCompleted, n.View().Drains[0].State)
	_, err = n.AdvanceDrain(bg, "nobody", 1, DrainStep{})
	requireReason(t, store.ReasonMoveNotFound, err)
	for name, s := range map[string]DrainStep{
		"state": {State: DrainCancelled + 1}, "negative": {MovesDone: -1, MovesTotal: 1}, "more": {MovesDone: 2, MovesTotal: 1}, "reason": {Reason: "\n"},
	} {
		_, err = n.AdvanceDrain(bg, d.ID, d.Version, s)
		require.Equal(t, store.ReasonMove, store.ReasonOf(err), name)
	}
}

// Danger: half of a cancelled drain goes on; or what was given away is taken back by force.
func TestCancelledDrainReturnsTheNodeToUp(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	d := n.drain()
	require.NoError(t, n.Declare(bg, membership.Up, membership.Draining))
	from := uint64(0)
	for _, s := range []State{Planned, Copying, Fenced, Accepted, Released} {
		id := strings.ToLower(s.String())
		n.create(spec(id, handOver(ring.HashRange{Start: from, End: from + 10}), func(s *Spec) { s.Parent = d.ID }))
		n.bring(id, s)
		from += 10
	}
	n.create(spec("mine"))
	n.bring("mine", Copying)
	writes := n.engine.written()
	off, drain, err := n.Cancel(bg, d.ID, "not now")
	require.NoError(t, err)
	require.Equal(t, writes+1, n.engine.written(), "all in one batch")
	require.Equal(t, []any{DrainCancelled, "not now"}, []any{drain.State, drain.Reason})
	require.Len(t, off, 3)
	require.Equal(t, membership.Up, n.Wanted())
	states := func() string {
		var out []string
		for _, id := range []string{"planned", "copying", "fenced", "accepted", "released", "mine"} {
			m, err := n.Get(id)
			require.NoError(t, err)
			out = append(out, m.State.String())
		}
		return strings.Join(out, " ")
	}
	require.Equal(t, "CANCELLED CANCELLED FENCED ACCEPTED RELEASED COPYING", states())
	m, err := n.Get("fenced")
	require.NoError(t, err)
	require.True(t, m.Cancelling)
	_, err = n.Create(bg, spec("late", handOver(ring.HashRange{Start: 0, End: 10}), func(s *Spec) { s.Parent = d.ID }))
	requireReason(t, store.ReasonMoveState, err)
	off, again, err := n.Cancel(bg, d.ID, "again")
	require.NoError(t, err)
	require.Empty(t, off)
	require.Equal(t, drain, again)

	n = restart(t, n, fs)
	require.Equal(t, membership.Up, n.Wanted())
	require.Equal(t, "CANCELLED CANCELLED FENCED ACCEPTED RELEASED COPYING", states())
	require.NotEqual(t, d.ID, n.drain().ID, "another one")
	require.Len(t, n.View().Drains, 2)
}

// Danger: a node is up before it has its records; or one that has them waits for ever after an update.
func TestWhatANodeWantsAtItsStart(t *testing.T) {
	declared := func(s membership.State) func(*Options) {
		return func(o *Options) { o.Declared = func() membership.State { return s } }
	}
	atOnce := func(o *Options) { o.JoinAtOnce = true }
	none := func(*Options) {}
	for _, c := range []struct {
		declared membership.State
		join     func(*Options)
		want     membership.State
	}{
		{0, none, membership.Joining}, {0, atOnce, membership.Up},
		{membership.Joining, none, membership.Joining}, {membership.Joining, atOnce, membership.Up},
		{membership.Up, none, membership.Up}, {membership.Up, atOnce, membership.Up},
		{membership.Draining, none, membership.Draining}, {membership.Drained, atOnce, membership.Drained},
		{membership.Removed, none, membership.Joining},
	} {
		require.Equal(t, c.want, start(t, vfs.NewMem(), declared(c.declared), c.join).Wanted(), "declared %s", c.declared)
	}
	// What it wanted last counts, whatever the health-agent has made of it.
	fs := vfs.NewMem()
	n := start(t, fs)
	requireReason(t, store.ReasonMoveChanged, n.Declare(bg, membership.Up, membership.Draining))
	requireReason(t, store.ReasonMoveState, n.Declare(bg, membership.Joining, membership.Drained))
	require.NoError(t, n.Declare(bg, membership.Joining, membership.Up))
	require.NoError(t, n.Declare(bg, membership.Joining, membership.Up), "a repeat")
	requireReason(t, store.ReasonMoveState, n.Declare(bg, membership.Up, membership.Draining)) // no drain
	n = restart(t, n, fs, declared(membership.Joining))
	require.Equal(t, membership.Up, n.Wanted())
	// Another directory, restored from a snapshot of this one, has to earn it anew.
	n = restart(t, n, fs, func(o *Options) { o.Incarnation = "i2" })
	require.Equal(t, membership.Joining, n.Wanted())
}

// Danger: a snapshot that is restored takes up moves of its time: it gives away what has long been given.
func TestMovesOfAnotherIncarnationAreOver(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	d := n.drain()
	n.create(spec("h", handOver(ring.HashRange{Start: 1, End: 2}), func(s *Spec) { s.Parent = d.ID }))
	n.bring("h", Accepted)
	n.create(spec("done"))
	n.bring("done", Released)
	n = restart(t, n, fs, func(o *Options) { o.Incarnation = "i2" })
	require.NoError(t, n.Damage())
	require.Empty(t, n.List(false))
	require.Nil(t, n.Drain())
	m, err := n.Get("h")
	require.NoError(t, err)
	require.Equal(t, []any{Cancelled, otherLife}, []any{m.State, m.Reason})
	require.True(t, m.MayBeFenced(), "nobody knows what became of it: its ranges are not taken back")
	m, err = n.Get("done")
	require.NoError(t, err)
	require.Equal(t, Released, m.State)
}

// Danger: what was told to the migrator is gone after a power cut; or a failed write counts.
func TestNothingCountsThatIsNotDurable(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	n.create(spec("m"))
	v := n.View()
	n.engine.failWith(engine.ErrDiskFull)
	told := len(n.told)
	_, err := n.Create(bg, spec("m2"))
	require.ErrorIs(t, err, engine.ErrDiskFull)
	_, err = n.MarkPinned(bg, "m", 5)
	require.ErrorIs(t, err, engine.ErrDiskFull)
	_, _, err = n.Cancel(bg, "m", "")
	require.ErrorIs(t, err, engine.ErrDiskFull)
	require.ErrorIs(t, n.Declare(bg, membership.Joining, membership.Up), engine.ErrDiskFull)
	require.Equal(t, v, n.View())
	require.Len(t, n.told, told)
	n.engine.failWith(nil)
	require.Equal(t, Pinned, n.bring("m", Pinned).State)

	ctx, cancel := context.WithCancel(bg)
	cancel()
	_, err = n.Create(ctx, spec("m3"))
	require.ErrorIs(t, err, context.Canceled)
	_, err = n.Advance(ctx, "m", 2, Step{State: Copying})
	require.ErrorIs(t, err, context.Canceled)
	_, _, err = n.Cancel(ctx, "m", "")
	require.ErrorIs(t, err, context.Canceled)
	_, err = n.StartDrain(ctx, "", "")
	require.ErrorIs(t, err, context.Canceled)
	_, err = n.AdvanceDrain(ctx, "d", 1, DrainStep{})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, n.Declare(ctx, membership.Joining, membership.Up), context.Canceled)
	require.Equal(t, "m:2:PINNED", n.words())
}

// Danger: one record that can't be read keeps the node from all other moves, or from starting.
func TestRecordsThatCantBeReadAreReportedAndLeftOut(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	n.create(spec("good"), spec("bad"))
	d := n.drain()
	records := n.store.System(systemTenant)
	for _, c := range []struct{ key, value string }{
		{"move/bad", ""}, {"move/bad", "{"}, {"move/bad", `{"v":2}`}, {"move/bad", `{"v":0}`}, {"move/bad", `{"v":1,"id":"good"}`},
		{"move/bad", `{"v":1,"id":"bad","version":1,"state":77}`}, {"move/bad", `{"v":1,"id":"bad","version":1,"state":1}`},
		{"move/bad", `{"v":1,"id":"bad","version":1,"state":10,"resume_state":11}`}, {"what/bad", `{"v":1,"start":"x"}`},
		{"drain/" + d.ID, `{"v":1,"id":"x"}`}, {"drain/" + d.ID, `{"v":1,"id":"` + d.ID + `","version":1,"state":9}`},
		{"wanted", `{"v":1,"version":1,"state":5}`}, {"wanted", "x"}, {"else/x", "{}"}, {"what/lonely", "{"},
	} {
		_, err := records.Write(bg, c.key, []byte(c.value), store.Causality{})
		require.NoError(t, err)
		n = restart(t, n, fs)
		records = n.store.System(systemTenant)
		require.ErrorContains(t, n.Damage(), c.key, "%s", c.value)
		require.Len(t, n.damage, 1)
		m, err := n.Get("good")
		require.NoError(t, err)
		require.Equal(t, Planned, m.State)
	}
	_, err := n.Get("bad")
	requireReason(t, store.ReasonMoveNotFound, err)
	require.Equal(t, membership.Joining, n.Wanted(), "one that does not know is not up")
	require.Equal(t, Planned, n.create(spec("bad")).State, "made again, it is there again")
	n = restart(t, n, fs)
	require.NotContains(t, n.Damage().Error(), "move/bad")
	_, err = n.Get("bad")
	require.NoError(t, err)
}

// Danger: a write of unknown end leaves siblings, and the older one comes back.
func TestNewestOfSiblingsCounts(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	m := n.create(spec("m"))
	older := *m
	n.bring("m", Copying)
	value, err := encodeMove(&older, "i1")
	require.NoError(t, err)
	_, err = n.store.System(systemTenant).Write(bg, "move/m", value, store.Causality{HasContext: true})
	require.NoError(t, err)
	n = restart(t, n, fs)
	require.NoError(t, n.Damage())
	require.Equal(t, "m:3:COPYING", n.words())
}

// Danger: events and metrics tell another story than the moves.
func TestChangesAreToldInTheirOrder(t *testing.T) {
	n := start(t, vfs.NewMem())
	n.create(spec("f", follow))
	n.bring("f", Tailing)
	n.step("f", Step{Progress: &Progress{LagMS: 1500, TailedBytes: 7}})
	var states []string
	for i, c := range n.told {
		require.NotNil(t, c.After)
		if i > 0 {
			require.Same(t, n.told[i-1].After, c.Before)
		}
		states = append(states, c.After.State.String())
	}
	require.Nil(t, n.told[0].Before)
	require.Equal(t, "PLANNED PINNED COPYING TAILING TAILING", strings.Join(states, " "))
	require.Equal(t, 4, strings.Count(n.log.String(), "msg=move"), "progress is not logged: %s", n.log)

	c := n.Counts()
	require.Equal(t, 1, c.Active[Tailing])
	require.Equal(t, 1500*time.Millisecond, c.Lag)
	require.False(t, c.Draining)
	n.wall.move(20 * time.Second)
	require.Equal(t, 21500*time.Millisecond, n.Counts().Lag, "a migrator that is silent sends nothing")
	_, _, err := n.Cancel(bg, "f", "")
	require.NoError(t, err)
	n.drain()
	c = n.Counts()
	require.Zero(t, c.Lag)
	require.True(t, c.Draining)
	require.EqualValues(t, 1, c.Ended[PurposeReplicate][CalledOff])
	require.NotNil(t, n.told[len(n.told)-1].DrainAfter)
}
