package antientropy

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/compact"
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
	fail error
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

func (e *realEngine) NewSnapshot() store.Snapshot       { panic("no snapshot is needed") }
func (e *realEngine) Tail(ikey.Seq) (store.Tail, error) { return nil, store.ErrOutOfRange }
func (e *realEngine) failWith(err error)                { e.mu.Lock(); defer e.mu.Unlock(); e.fail = err }

type realClock struct{}

func (realClock) Now() time.Time                         { return time.Now() }
func (realClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// node is a registry of node "self" over a real engine.
type node struct {
	*Registry
	fs     vfs.FS
	engine *realEngine
	store  *store.Store
}

func start(t require.TestingT, fs vfs.FS, o Options) *node {
	if disk, ok := fs.(interface{ SetUsage(vfs.Usage) }); ok {
		disk.SetUsage(vfs.Usage{TotalBytes: 1 << 30, FreeBytes: 1 << 29})
	}
	n := &node{fs: fs, engine: &realEngine{}}
	eo := engine.Options{
		FS: fs, Clock: realClock{}, Rand: rand.New(rand.NewPCG(1, 2)), MaxBatchBytes: 48 << 20, MemtableBytes: 1 << 20, LogSegmentBytes: 1 << 20,
		TableBytes: 256 << 10, ReserveBytes: 1 << 20, SpacePoll: time.Second, Jobs: jobs.Options{Mode: jobs.ModeAlways},
	}
	if o.Grace != 0 { // a test of collection
		eo.GCBefore = func() uint64 { return n.GCBefore() }
		eo.Cuts = func() ([]compact.HashCut, bool) { return n.Cuts() }
	}
	n.Registry = New(o)
	e, err := engine.Open("data", eo)
	require.NoError(t, err)
	n.engine.Engine = e
	n.Registry.o.Sequence = e.VisibleSeq
	n.store, err = store.New(n.engine, store.Options{NodeID: o.NodeID, Now: o.Now})
	require.NoError(t, err)
	require.NoError(t, n.Open(bg, n.store))
	return n
}

func (n *node) restart(t require.TestingT) *node {
	require.NoError(t, n.engine.Close())
	return start(t, n.fs, n.o)
}

func declared(name string, version uint64, s membership.State, incarnation string) membership.Declaration {
	return membership.Declaration{NodeID: name, Version: version, State: s, Incarnation: incarnation, GRPCAddr: name + ":8080", VirtualNodes: 8}
}

// three are self, p and w, up.
func three() []membership.Declaration {
	return []membership.Declaration{
		declared("self", 2, membership.Up, "i"), declared("p", 2, membership.Up, "i"), declared("w", 2, membership.Up, "i"),
	}
}

var whole = []ring.HashRange{{}}

// cutAt returns the cut of a token, 0 for none.
func (n *node) cutAt(token uint64) ikey.Seq {
	cuts, _ := n.Cuts()
	cut, _ := compact.CutOf(cuts, token)
	return cut
}

func (n *node) seq() ikey.Seq { return n.engine.VisibleSeq() }

// Danger: a delete is collected by what one replica has, while another, absent or slow, has it not.
func TestACutNeedsEveryReplica(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{NodeID: "self"})
	defer func() { require.NoError(t, n.engine.Close()) }()
	cuts, inForce := n.Cuts()
	require.True(t, inForce, "nobody knows yet who else there is")
	require.Empty(t, cuts)
	require.NoError(t, n.SetMembers(bg, three(), true))
	s := n.seq()
	require.NoError(t, n.Record(bg, "p", whole, s+5, time.UnixMilli(1000)))
	cuts, inForce = n.Cuts()
	require.True(t, inForce)
	require.Empty(t, cuts)
	for _, r := range n.Ranges() {
		require.Equal(t, "w", r.Behind)
		require.True(t, r.EqualAt.IsZero())
		require.Equal(t, time.UnixMilli(1000), r.EqualWith[slices.Index(r.Replicas, "p")])
		require.True(t, r.EqualWith[slices.Index(r.Replicas, "self")].IsZero())
	}
	require.NoError(t, n.Record(bg, "w", []ring.HashRange{{Start: 1 << 63}}, s+3, time.UnixMilli(500)))
	require.Equal(t, s+3, n.cutAt(math.MaxUint64))
	require.Equal(t, s+3, n.cutAt(1<<63))
	require.Zero(t, n.cutAt(1<<63-1))

	// Facts only grow, and survive a restart; until the members are known again nothing counts.
	require.NoError(t, n.Record(bg, "w", whole, s+2, time.UnixMilli(400)))
	require.Equal(t, s+3, n.cutAt(1<<63))
	require.Equal(t, s+2, n.cutAt(0))
	n = n.restart(t)
	require.Zero(t, n.cutAt(0))
	require.NoError(t, n.SetMembers(bg, three(), true))
	require.Equal(t, s+3, n.cutAt(1<<63))
	require.Equal(t, s+2, n.cutAt(0))
	require.Equal(t, time.UnixMilli(400), n.Ranges()[0].EqualAt)

	// A node that is not known to have all members collects nothing.
	require.NoError(t, n.SetMembers(bg, three(), false))
	require.Zero(t, n.cutAt(0))
	require.True(t, n.InForce())
}

// Danger: what was equal with a data directory that is gone, or in a range that was lost in between, is
// believed of its successor.
func TestFactsEndWithWhatTheySpeakOf(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, n *node) []membership.Declaration{
		"another incarnation": func(*testing.T, *node) []membership.Declaration {
			d := three()
			d[1].Incarnation, d[1].Version = "j", 3
			return d
		},
		"a drain that was cancelled": func(t *testing.T, n *node) []membership.Declaration {
			d := three()
			d[1] = declared("p", 3, membership.Draining, "i")
			require.NoError(t, n.SetMembers(bg, d, true))
			d[1] = declared("p", 4, membership.Up, "i")
			return d
		},
		"one that was not seen": func(*testing.T, *node) []membership.Declaration {
			d := three()
			d[1] = declared("p", 4, membership.Up, "i")
			return d
		},
		"one that came and went": func(*testing.T, *node) []membership.Declaration {
			return append(three(), declared("x", 4, membership.Drained, "i"))
		},
		"one that came and was removed": func(*testing.T, *node) []membership.Declaration {
			return append(three(), declared("x", 4, membership.Removed, "i"))
		},
		"this node's other directory": func(*testing.T, *node) []membership.Declaration {
			d := three()
			d[0].Incarnation, d[0].Version = "j", 3
			return d
		},
		"this node's drain": func(t *testing.T, n *node) []membership.Declaration {
			d := three()
			d[0] = declared("self", 3, membership.Draining, "i")
			require.NoError(t, n.SetMembers(bg, d, true))
			require.Zero(t, n.cutAt(5))
			d[0] = declared("self", 4, membership.Up, "i")
			return d
		},
		"a range that is lost": func(t *testing.T, n *node) []membership.Declaration {
			require.NoError(t, n.Forget(bg, whole))
			return three()
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := start(t, vfs.NewMem(), Options{NodeID: "self"})
			defer func() { require.NoError(t, n.engine.Close()) }()
			require.NoError(t, n.SetMembers(bg, three(), true))
			before := n.seq()
			require.NoError(t, n.Record(bg, "p", whole, before, time.UnixMilli(1)))
			require.NoError(t, n.Record(bg, "w", whole, before, time.UnixMilli(1)))
			require.Equal(t, before, n.cutAt(5))
			after := change(t, n)
			require.NoError(t, n.SetMembers(bg, after, true))
			require.Zero(t, n.cutAt(5))
			// A comparison that began before tells nothing either.
			require.NoError(t, n.Record(bg, "p", whole, before, time.UnixMilli(2)))
			require.NoError(t, n.Record(bg, "w", whole, before, time.UnixMilli(2)))
			require.Zero(t, n.cutAt(5))
			n = n.restart(t)
			require.NoError(t, n.SetMembers(bg, after, true))
			require.Zero(t, n.cutAt(5))
			require.NoError(t, n.Record(bg, "p", whole, n.seq(), time.UnixMilli(3)))
			require.NoError(t, n.Record(bg, "w", whole, n.seq(), time.UnixMilli(3)))
			require.NotZero(t, n.cutAt(5))
		})
	}
}

// Danger: what happened while this node was away is not noticed, because the facts on disk look well.
func TestWhatChangedWhileThisNodeWasAwayCounts(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{NodeID: "self"})
	require.NoError(t, n.SetMembers(bg, three(), true))
	require.NoError(t, n.Record(bg, "p", whole, n.seq(), time.UnixMilli(1)))
	require.NoError(t, n.Record(bg, "w", whole, n.seq(), time.UnixMilli(1)))
	n = n.restart(t)
	defer func() { require.NoError(t, n.engine.Close()) }()
	require.NoError(t, n.SetMembers(bg, append(three(), declared("x", 4, membership.Removed, "i")), true))
	require.Zero(t, n.cutAt(5))
}

// Danger: ranges that a joining node takes from a replica, and gives back when its join is called off,
// seem to have been that replica's all the time.
func TestRangesThatMoveToAJoiningNodeHaveNoCut(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{NodeID: "self", ReplicationFactor: 2})
	defer func() { require.NoError(t, n.engine.Close()) }()
	require.NoError(t, n.SetMembers(bg, three(), true))
	equal := func() {
		require.NoError(t, n.Record(bg, "p", whole, n.seq(), time.UnixMilli(1)))
		require.NoError(t, n.Record(bg, "w", whole, n.seq(), time.UnixMilli(1)))
	}
	equal()
	joining := append(three(), declared("x", 1, membership.Joining, "i"))
	require.NoError(t, n.SetMembers(bg, joining, true))
	equal()
	now := ring.New([]ring.Member{{NodeID: "self", VirtualNodes: 8}, {NodeID: "p", VirtualNodes: 8}, {NodeID: "w", VirtualNodes: 8}}, 2)
	soon := ring.New([]ring.Member{{NodeID: "self", VirtualNodes: 8}, {NodeID: "p", VirtualNodes: 8}, {NodeID: "w", VirtualNodes: 8}, {NodeID: "x", VirtualNodes: 8}}, 2)
	kept, moved := 0, 0
	for _, p := range now.RangesOf("self") {
		for _, q := range soon.Placements() {
			for _, part := range ring.Intersect([]ring.HashRange{p.Range}, []ring.HashRange{q.Range}) {
				if slices.Equal(p.Replicas, q.Replicas) {
					require.NotZero(t, n.cutAt(part.Start))
					kept++
				} else if !slices.Contains(q.Replicas, "self") || !slices.Contains(q.Replicas, p.Replicas[0]) || !slices.Contains(q.Replicas, p.Replicas[1]) {
					require.Zero(t, n.cutAt(part.Start))
					moved++
				}
			}
		}
	}
	require.Positive(t, kept)
	require.Positive(t, moved)
}

// Danger: a node alone never collects; or a cluster collects by age.
func TestAutoIsRepairAsSoonAsAnotherMemberIsDeclared(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	o := Options{NodeID: "self", Grace: time.Hour, MaxClockSkew: time.Minute, Now: func() time.Time { return now }}
	alone := three()[:1]
	for _, c := range []struct {
		mode    Mode
		members []membership.Declaration
		inForce bool
	}{
		{Auto, nil, false},
		{Auto, alone, false},
		{Auto, append(slices.Clone(alone), declared("p", 1, membership.Joining, "i")), true},
		{Auto, append(slices.Clone(alone), declared("p", 1, membership.Drained, "i"), declared("w", 1, membership.Removed, "i")), false},
		{Auto, three(), true},
		{Repair, alone, true},
		{Grace, three(), false},
	} {
		o.Mode = c.mode
		n := start(t, vfs.NewMem(), o)
		require.NoError(t, n.SetMembers(bg, c.members, true))
		require.Equal(t, c.inForce, n.InForce(), "%s with %d members", c.mode, len(c.members))
		want := now.Add(-time.Hour)
		if c.inForce {
			want = want.Add(-2 * time.Minute)
		}
		require.Equal(t, causal.Timestamp(want), n.GCBefore())
		cuts, _ := n.Cuts()
		if c.mode == Repair {
			require.Equal(t, []compact.HashCut{{Seq: ikey.MaxSeq}}, cuts, "it has no other replica")
		}
		require.NoError(t, n.engine.Close())
	}
	for _, m := range []Mode{Auto, Repair, Grace} {
		got, err := ParseMode(m.String())
		require.NoError(t, err)
		require.Equal(t, m, got)
	}
	_, err := ParseMode("never")
	require.Error(t, err)
}

// Danger: a fact counts that a crash takes back, or one that was forgotten comes back with a restart.
func TestWhatCanNotBeWrittenDoesNotCount(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{NodeID: "self"})
	require.NoError(t, n.SetMembers(bg, three(), true))
	require.NoError(t, n.Record(bg, "p", whole, n.seq(), time.UnixMilli(1)))
	full := errors.New("disk is full")
	n.engine.failWith(full)
	require.ErrorIs(t, n.Record(bg, "w", whole, n.seq(), time.UnixMilli(1)), full)
	require.Zero(t, n.cutAt(5))
	n.engine.failWith(nil)
	s := n.seq()
	require.NoError(t, n.Record(bg, "w", whole, s, time.UnixMilli(1)))
	require.NotZero(t, n.cutAt(5))
	n.engine.failWith(full)
	require.ErrorIs(t, n.Forget(bg, whole), full)
	require.Zero(t, n.cutAt(5), "forgotten all the same")
	require.NoError(t, n.Record(bg, "nobody", whole, n.seq()+9, time.UnixMilli(1)))
	n.engine.failWith(nil)
	require.NoError(t, n.SetMembers(bg, three(), true)) // makes it good
	n = n.restart(t)
	defer func() { require.NoError(t, n.engine.Close()) }()
	require.NoError(t, n.SetMembers(bg, three(), true))
	require.Zero(t, n.cutAt(5))
	ctx, cancel := context.WithCancel(bg)
	cancel()
	require.ErrorIs(t, n.Record(ctx, "p", whole, n.seq(), time.Now()), context.Canceled)
	require.ErrorIs(t, n.Forget(ctx, whole), context.Canceled)
	require.ErrorIs(t, n.SetMembers(ctx, three(), true), context.Canceled)
}

// Danger: records that are damaged, or of another time than the members beside them, are believed.
func TestRecordsThatCanNotBeReadAreNoFacts(t *testing.T) {
	for name, write := range map[string]store.Op{
		"facts":   {Kind: store.Put, Key: "p", Value: []byte{9}},
		"members": {Kind: store.Put, Key: membersKey, Value: []byte{format}},
	} {
		n := start(t, vfs.NewMem(), Options{NodeID: "self"})
		require.NoError(t, n.SetMembers(bg, three(), true))
		require.NoError(t, n.Record(bg, "p", whole, n.seq(), time.UnixMilli(1)))
		require.NoError(t, n.Record(bg, "w", whole, n.seq(), time.UnixMilli(1)))
		write.Causality = store.Causality{Context: n.clocks[write.Key], HasContext: true}
		_, err := n.records.WriteAll(bg, []store.Op{write})
		require.NoError(t, err)
		n = n.restart(t)
		require.NoError(t, n.SetMembers(bg, three(), true))
		require.Zero(t, n.cutAt(5), name)
		require.NoError(t, n.Record(bg, "p", whole, n.seq(), time.UnixMilli(1)))
		require.NoError(t, n.Record(bg, "w", whole, n.seq(), time.UnixMilli(1)))
		require.NotZero(t, n.cutAt(5), name)
		require.NoError(t, n.engine.Close())
	}
}

// Danger: a cut above what was recorded for some replica, after any history of comparisons, members that
// come, drain and go, ranges that are lost, and restarts.
func TestNoCutExceedsWhatWasRecordedForEveryReplica(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		factor := rapid.IntRange(1, 3).Draw(t, "factor")
		n := start(t, vfs.NewMem(), Options{NodeID: "self", ReplicationFactor: factor})
		defer func() { require.NoError(t, n.engine.Close()) }()
		m := &model{factor: factor, members: membership.Map{}}
		for range 12 {
			m.tokens = append(m.tokens, rapid.Uint64().Draw(t, "token"))
		}
		m.equal = make([]map[string]ikey.Seq, len(m.tokens))
		for _, d := range three() {
			m.members[d.NodeID] = d
		}
		m.declare(m.members.Clone())
		require.NoError(t, n.SetMembers(bg, m.members.Sorted(), true))
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0, 1, 2, 3, 4:
				peer := rapid.SampledFrom([]string{"p", "w", "x", "self"}).Draw(t, "peer")
				ranges := genRanges(t)
				// A comparison of the very moment in which something was forgotten may have begun before.
				seq := n.seq() + 1 + ikey.Seq(rapid.IntRange(0, 9).Draw(t, "ahead"))
				require.NoError(t, n.Record(bg, peer, ranges, seq, time.UnixMilli(int64(seq))))
				m.record(peer, ranges, seq)
			case 5, 6, 7:
				next := m.members.Clone()
				name := rapid.SampledFrom([]string{"p", "w", "x", "self"}).Draw(t, "member")
				d := next[name]
				d.NodeID, d.VirtualNodes, d.Version = name, 8, d.Version+uint64(rapid.IntRange(1, 2).Draw(t, "versions"))
				d.State = rapid.SampledFrom([]membership.State{1, 2, 2, 2, 3, 4, 5}).Draw(t, "state")
				if rapid.IntRange(0, 3).Draw(t, "new directory") == 0 {
					d.Incarnation += "+"
				}
				next[name] = d
				m.declare(next)
				require.NoError(t, n.SetMembers(bg, next.Sorted(), true))
			case 8:
				ranges := genRanges(t)
				require.NoError(t, n.Forget(bg, ranges))
				m.forget(ranges)
			case 9:
				n = n.restart(t)
				require.NoError(t, n.SetMembers(bg, m.members.Sorted(), true))
			}
			m.check(t, n)
		}
	})
}

func genRanges(t *rapid.T) []ring.HashRange {
	if rapid.Bool().Draw(t, "all") {
		return whole
	}
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) ring.HashRange {
		return ring.HashRange{Start: rapid.Uint64().Draw(t, "start"), End: rapid.Uint64().Draw(t, "end")}
	}), 1, 4).Draw(t, "ranges")
}

// model knows by token what was recorded.
type model struct {
	factor  int
	members membership.Map
	now     *ring.Ring
	soon    *ring.Ring
	tokens  []uint64
	equal   []map[string]ikey.Seq // by token, then peer
}

func (m *model) counts(peer string, token uint64) bool {
	for _, name := range []string{"self", peer} {
		if m.members[name].State != membership.Up || !slices.Contains(m.now.Replicas(token), name) || !slices.Contains(m.soon.Replicas(token), name) {
			return false
		}
	}
	return true
}

func (m *model) record(peer string, ranges []ring.HashRange, seq ikey.Seq) {
	for i, token := range m.tokens {
		if peer != "self" && m.counts(peer, token) && ring.In(ring.Normal(ranges), token) {
			m.equal[i][peer] = max(m.equal[i][peer], seq)
		}
	}
}

func (m *model) forget(ranges []ring.HashRange) {
	for i, token := range m.tokens {
		if m.equal[i] == nil || ring.In(ring.Normal(ranges), token) {
			m.equal[i] = map[string]ikey.Seq{}
		}
	}
}

func (m *model) declare(next membership.Map) {
	var now, soon []ring.Member
	for _, d := range next.Sorted() {
		x := ring.Member{NodeID: d.NodeID, VirtualNodes: d.VirtualNodes}
		if d.State == membership.Up || d.State == membership.Draining {
			now, soon = append(now, x), append(soon, x)
		}
		if d.State == membership.Joining {
			soon = append(soon, x)
		}
	}
	old := m.members
	m.members, m.now, m.soon = next, ring.New(now, m.factor), ring.New(soon, m.factor)
	for i, token := range m.tokens {
		if m.equal[i] == nil || hides("self", old, next) != "" {
			m.equal[i] = map[string]ikey.Seq{}
		}
		for peer := range m.equal[i] {
			if !m.counts(peer, token) || old[peer].Incarnation != next[peer].Incarnation {
				delete(m.equal[i], peer)
			}
		}
	}
}

func (m *model) check(t *rapid.T, n *node) {
	cuts, inForce := n.Cuts()
	others := false
	for name, d := range m.members {
		others = others || name != "self" && d.State <= membership.Draining
	}
	require.Equal(t, others, inForce)
	require.NoError(t, compact.CheckCuts(cuts))
	for i, token := range m.tokens {
		want, has := ikey.MaxSeq, m.counts("self", token)
		for _, peer := range m.now.Replicas(token) {
			if peer == "self" {
				continue
			}
			seq, ok := m.equal[i][peer]
			want, has = min(want, seq), has && ok
		}
		got, ok := compact.CutOf(cuts, token)
		require.Equal(t, has && inForce, ok, "token %x, replicas %v, recorded %v", token, m.now.Replicas(token), m.equal[i])
		if ok {
			require.Equal(t, want, got)
		}
	}
}

// Danger: a record from disk makes the node fail, or take facts in disorder.
func FuzzDecodeFacts(f *testing.F) {
	f.Add(encodeFacts("i", nil))
	f.Add(encodeFacts("inc", facts{{ring.HashRange{Start: 1, End: 5}, 7, 1000}, {ring.HashRange{Start: 5}, 9, 2000}}))
	f.Add(encodeFacts("", facts{{ring.HashRange{}, ikey.MaxSeq, math.MaxInt64}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		incarnation, x, err := decodeFacts(b)
		if err != nil {
			require.ErrorIs(t, err, errFormat)
			return
		}
		again, y, err := decodeFacts(encodeFacts(incarnation, x))
		require.NoError(t, err)
		require.Equal(t, incarnation, again)
		require.Equal(t, x, y)
		require.Equal(t, x, x.in(parts(whole)))
	})
}

// Danger: a list of facts that grows without end, or says more than was recorded when it is cut down.
func TestFactsAreBoundedAndNeverSayMore(t *testing.T) {
	var all facts
	rng := rand.New(rand.NewPCG(1, 2))
	const n = maxFacts + 1000
	for i := range uint64(n) {
		all = append(all, fact{ring.HashRange{Start: i * 10, End: i*10 + 10}, ikey.Seq(100 + rng.IntN(50)), int64(1 + i%3)})
	}
	few := slices.Clone(all).normal()
	require.LessOrEqual(t, len(few), maxFacts)
	for _, x := range all {
		got, ok := few.of(x.Start)
		require.True(t, ok)
		require.LessOrEqual(t, got.seq, x.seq)
		require.LessOrEqual(t, got.at, x.at)
	}
	for i := range all {
		all[i].End-- // none touches another
	}
	few = slices.Clone(all).normal()
	require.Len(t, few, maxFacts)
	_, ok := few.of(all[n-1].Start)
	require.False(t, ok)
}
