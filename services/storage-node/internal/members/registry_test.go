package members

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

var bg = context.Background()

// realEngine is the engine as the store declares it, as in package node. Writes can be made to fail, and
// are counted.
type realEngine struct {
	*engine.Engine
	t *testing.T

	mu      sync.Mutex
	fail    error // of Submit
	submits int
	keys    int // that were submitted
}

func (e *realEngine) NewBatch() store.Batch { return new(engine.Batch) }

func (e *realEngine) Submit(b store.Batch) (ikey.Seq, error) {
	e.mu.Lock()
	e.submits++
	e.keys += b.Len()
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
func (e *realEngine) written() (submits, keys int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.submits, e.keys
}
func (e *realEngine) failWith(err error) { e.mu.Lock(); defer e.mu.Unlock(); e.fail = err }

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
	store  *store.Store
	engine *realEngine
	wall   *wall
	log    *bytes.Buffer
	told   [][]Reason // of Problems
}

// start opens a node in fs and closes it when the test ends, unless restart did.
func start(t *testing.T, fs vfs.FS) *node {
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
	n := &node{engine: &realEngine{Engine: e, t: t}, wall: &wall{now: time.UnixMilli(1_700_000_000_000)}, log: &bytes.Buffer{}}
	n.store, err = store.New(n.engine, store.Options{NodeID: "n1", Now: n.wall.Now})
	require.NoError(t, err)
	n.Registry = New(Options{
		NodeID: "n1", Incarnation: "i1", Now: n.wall.Now, Log: slog.New(slog.NewTextHandler(n.log, nil)),
		Problems: func(p []Reason) { n.told = append(n.told, p) },
	})
	require.NoError(t, n.Open(bg, n.store))
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return n
}

// restart closes a node and opens it again.
func restart(t *testing.T, n *node, fs vfs.FS) *node {
	t.Helper()
	require.NoError(t, n.engine.Close())
	return start(t, fs)
}

// declared is what member n<i> says of itself.
func declared(i int, version uint64, s membership.State) membership.Declaration {
	return membership.Declaration{
		NodeID: fmt.Sprintf("n%d", i), Version: version, State: s, Incarnation: fmt.Sprintf("i%d", i),
		GRPCAddr: fmt.Sprintf("10.0.0.%d:8080", i), Zone: "a", VirtualNodes: 150, DeclaredAt: 5,
	}
}

func member(i int, version uint64, s membership.State, l Liveness) Member {
	return Member{Declared: declared(i, version, s), Seen: Seen{Liveness: l, Since: 7, Version: "v1", GossipAddr: "10.0.0.1:7946", Ready: true, DiskUsedPercent: 3}}
}

func (n *node) report(t *testing.T, all ...Member) []membership.Declaration {
	t.Helper()
	out, err := n.Report(bg, Report{Members: all})
	require.NoError(t, err)
	return out
}

// words says of each member in the view what is declared and seen.
func (n *node) words() string {
	var out []string
	for _, m := range n.View().Members {
		out = append(out, fmt.Sprintf("%s:%d:%s:%s", m.Declared.NodeID, m.Declared.Version, m.Declared.State, m.Liveness))
	}
	return strings.Join(out, " ")
}

func requireReason(t require.TestingT, want store.Reason, err error) {
	require.Equal(t, want, store.ReasonOf(err), "%v", err)
}

func problems(all []Reason) (names string) {
	for _, p := range all {
		names += p.Name + " "
	}
	return names
}

// Danger: a restart forgets a member, or takes what was seen before it for the present.
func TestDeclarationsSurviveARestartAndWhatIsSeenDoesNot(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	require.Empty(t, n.View().Members)
	require.True(t, n.View().Heard.IsZero())
	verdict := &Verdict{Live: true, Degraded: []Reason{{"compaction", "none"}}}
	out, err := n.Report(bg, Report{Verdict: verdict, Members: []Member{
		member(2, 3, membership.Up, Alive), member(1, 1, membership.Joining, Alive), member(3, 9, membership.Removed, Left),
	}})
	require.NoError(t, err)
	want := []membership.Declaration{declared(1, 1, membership.Joining), declared(2, 3, membership.Up), declared(3, 9, membership.Removed)}
	require.Equal(t, want, out)
	require.Equal(t, "n1:1:JOINING:ALIVE n2:3:UP:ALIVE n3:9:REMOVED:LEFT", n.words())
	require.Equal(t, verdict, n.View().Verdict)
	require.Equal(t, n.wall.Now(), n.View().Heard)
	require.Equal(t, "v1", n.View().Members[0].Version)

	for range 2 {
		n = restart(t, n, fs)
		require.NoError(t, n.Damage())
		require.Equal(t, "n1:1:JOINING:UNSEEN n2:3:UP:UNSEEN n3:9:REMOVED:UNSEEN", n.words())
		require.Equal(t, declared(2, 3, membership.Up), n.View().Members[1].Declared)
		require.True(t, n.View().Heard.IsZero())
		require.Nil(t, n.View().Verdict)
	}
	// The answer to the first report after it has all that is remembered.
	require.Len(t, n.report(t, member(1, 1, membership.Joining, Alive)), 3)
	require.Equal(t, "n1:1:JOINING:ALIVE n2:3:UP:UNSEEN n3:9:REMOVED:UNSEEN", n.words())
}

// Danger: old news undoes newer one, or each report writes the whole map.
func TestReportsAreJoinedAndOnlyChangesAreWritten(t *testing.T) {
	n := start(t, vfs.NewMem())
	all := []Member{member(1, 1, membership.Up, Alive), member(2, 5, membership.Draining, Alive), member(3, 1, membership.Up, Alive)}
	n.report(t, all...)
	submits, keys := n.engine.written()
	require.Equal(t, [2]int{1, 3}, [2]int{submits, keys}, "one batch")
	for range 10 {
		n.report(t, all...)
	}
	n.report(t, member(2, 4, membership.Up, Down)) // older: only what is seen counts
	n.report(t)
	submits, keys = n.engine.written()
	require.Equal(t, [2]int{1, 3}, [2]int{submits, keys})

	n.report(t, member(2, 4, membership.Up, Down), member(3, 2, membership.Draining, Suspect))
	require.Equal(t, "n1:1:UP:UNSEEN n2:5:DRAINING:DOWN n3:2:DRAINING:SUSPECT", n.words())
	submits, keys = n.engine.written()
	require.Equal(t, [2]int{2, 4}, [2]int{submits, keys})
	require.Equal(t, 4, strings.Count(n.log.String(), `msg="member declared"`), "one line for each change: %s", n.log)
}

// Danger: half of a bad report counts.
func TestReportThatIsRefusedChangesNothing(t *testing.T) {
	n := start(t, vfs.NewMem())
	n.report(t, member(1, 1, membership.Up, Alive))
	before := n.View()
	good := member(2, 1, membership.Up, Alive)
	change := func(f func(*Member)) Report {
		bad := member(3, 1, membership.Up, Alive)
		f(&bad)
		return Report{Members: []Member{good, bad}}
	}
	long := func(n int) string { return strings.Repeat("x", n) }
	reasons := func(n int) []Reason { return make([]Reason, n) }
	many := Report{}
	for i := range membership.MaxMembers + 1 {
		many.Members = append(many.Members, member(i, 1, membership.Up, Alive))
	}
	for name, r := range map[string]Report{
		"too many":         many,
		"twice":            {Members: []Member{good, member(3, 1, membership.Up, Alive), good}},
		"no id":            change(func(m *Member) { m.Declared.NodeID = "" }),
		"bad id":           change(func(m *Member) { m.Declared.NodeID = "a/b" }),
		"long id":          change(func(m *Member) { m.Declared.NodeID = long(101) }),
		"no version":       change(func(m *Member) { m.Declared.Version = 0 }),
		"no state":         change(func(m *Member) { m.Declared.State = 0 }),
		"unknown state":    change(func(m *Member) { m.Declared.State = membership.Removed + 1 }),
		"long incarnation": change(func(m *Member) { m.Declared.Incarnation = long(101) }),
		"long address":     change(func(m *Member) { m.Declared.GRPCAddr = long(261) }),
		"long zone":        change(func(m *Member) { m.Declared.Zone = long(101) }),
		"virtual nodes":    change(func(m *Member) { m.Declared.VirtualNodes = -1 }),
		"no liveness":      change(func(m *Member) { m.Liveness = 0 }),
		"unknown liveness": change(func(m *Member) { m.Liveness = Left + 1 }),
		"since":            change(func(m *Member) { m.Since = -1 }),
		"long version":     change(func(m *Member) { m.Seen.Version = long(101) }),
		"long gossip":      change(func(m *Member) { m.GossipAddr = long(261) }),
		"many words":       change(func(m *Member) { m.Seen.Degraded = make([]string, 33) }),
		"long word":        change(func(m *Member) { m.Seen.Degraded = []string{long(65)} }),
		"disk below":       change(func(m *Member) { m.DiskUsedPercent = -1 }),
		"disk above":       change(func(m *Member) { m.DiskUsedPercent = 101 }),
		"many reasons":     {Members: []Member{good}, Verdict: &Verdict{NotLive: reasons(33)}},
		"long reason":      {Members: []Member{good}, Verdict: &Verdict{NotReady: []Reason{{Name: long(65)}}}},
		"long reason text": {Members: []Member{good}, Verdict: &Verdict{Degraded: []Reason{{Detail: long(1001)}}}},
	} {
		_, err := n.Report(bg, r)
		requireReason(t, store.ReasonReport, err)
		require.NotEmpty(t, err.(*store.Error).Message, name)
		require.Equal(t, before, n.View(), name)
	}
	// What is just allowed.
	edge := change(func(m *Member) {
		m.Declared.NodeID, m.Declared.Incarnation, m.Declared.GRPCAddr, m.Declared.Zone = long(100), long(100), long(260), long(100)
		m.Seen = Seen{Liveness: Left, Version: long(100), GossipAddr: long(260), Degraded: append(make([]string, 31), long(64)), DiskUsedPercent: 100}
	})
	edge.Verdict = &Verdict{NotLive: append(reasons(31), Reason{long(64), long(1000)})}
	_, err := n.Report(bg, edge)
	require.NoError(t, err)
	require.Len(t, n.View().Members, 3)
}

// Danger: members that come and go fill the map without end; or one report takes what others may have.
func TestMapIsBounded(t *testing.T) {
	n := start(t, vfs.NewMem())
	var all []Member
	for i := range membership.MaxMembers {
		all = append(all, member(i, 1, membership.Up, Alive))
	}
	require.Len(t, n.report(t, all...), membership.MaxMembers)
	submits, _ := n.engine.written()
	require.Equal(t, 1, submits)
	_, err := n.Report(bg, Report{Members: []Member{member(5000, 1, membership.Up, Alive), member(2, 2, membership.Draining, Alive)}})
	requireReason(t, store.ReasonTooManyMembers, err)
	require.Contains(t, n.words(), "n2:1:UP:ALIVE")
	n.report(t, member(2, 2, membership.Draining, Alive))
	require.Contains(t, n.words(), "n2:2:DRAINING:ALIVE")
}

// Danger: what was told to others is gone after a power cut; or a failed write counts.
func TestNothingCountsThatIsNotDurable(t *testing.T) {
	n := start(t, vfs.NewMem())
	n.report(t, member(1, 1, membership.Up, Alive))
	before := n.View()
	n.engine.failWith(engine.ErrDiskFull)
	_, err := n.Report(bg, Report{Members: []Member{member(2, 1, membership.Up, Alive)}})
	require.ErrorIs(t, err, engine.ErrDiskFull)
	require.Equal(t, before, n.View())
	n.engine.failWith(nil)
	n.report(t, member(2, 1, membership.Up, Alive))
	require.Len(t, n.View().Members, 2)

	ctx, cancel := context.WithCancel(bg)
	cancel()
	_, err = n.Report(ctx, Report{Members: []Member{member(3, 1, membership.Up, Alive)}})
	require.ErrorIs(t, err, context.Canceled)
	_, err = n.Remove(ctx, "n2", "x")
	require.ErrorIs(t, err, context.Canceled)
	require.Len(t, n.View().Members, 2)
}

// Danger: two nodes with one id serve the same keys, and neither says so; or the second one takes the
// place of the first in the map of the first.
func TestSecondNodeOfTheSameNameIsReported(t *testing.T) {
	n := start(t, vfs.NewMem())
	n.report(t, member(1, 2, membership.Up, Alive))
	other := member(1, 3, membership.Up, Alive)
	other.Declared.Incarnation, other.Declared.GRPCAddr = "i9", "10.0.0.9:8080"
	out := n.report(t, other, member(2, 1, membership.Up, Alive))
	require.Equal(t, []membership.Declaration{declared(1, 2, membership.Up), declared(2, 1, membership.Up)}, out, "it keeps its own")
	require.Equal(t, "duplicate-id ", problems(n.Problems()))
	require.Contains(t, n.Problems()[0].Detail, "10.0.0.9:8080")
	require.Len(t, n.told, 1)
	n.report(t, other)
	require.Len(t, n.told, 1, "told once")

	// What the health-agent declares above it is its own again.
	n.report(t, member(1, 4, membership.Joining, Alive))
	require.Empty(t, n.Problems())
	require.Len(t, n.told, 2)
	require.Equal(t, "n1:4:JOINING:ALIVE n2:1:UP:UNSEEN", n.words())

	// What an earlier directory of that name left behind is no second node, and no declaration of this one.
	for _, s := range []membership.State{membership.Drained, membership.Removed} {
		other.Declared.State, other.Declared.Version = s, 9
		n.report(t, other)
		require.Empty(t, n.Problems())
		require.EqualValues(t, 4, n.View().Members[0].Declared.Version)
	}
	// Nor is one that is older than what this one has said since.
	other.Declared.State, other.Declared.Version = membership.Up, 3
	n.report(t, other)
	require.Empty(t, n.Problems())

	// A directory that never declared anything is not safer.
	empty := start(t, vfs.NewMem())
	require.Empty(t, empty.report(t, other))
	require.Equal(t, "duplicate-id ", problems(empty.Problems()))
}

// Danger: replicas are placed without a member that is alive; or one that was taken out comes back.
func TestRemoval(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	view := []Member{
		member(1, 1, membership.Up, Alive), member(2, 4, membership.Up, Alive), member(3, 1, membership.Up, Suspect),
		member(4, 1, membership.Up, Down), member(5, 1, membership.Draining, Left), member(6, 1, membership.Joining, Unseen),
	}
	n.report(t, view...)
	for id, want := range map[string]store.Reason{
		"n1": store.ReasonMemberSelf, "n2": store.ReasonMemberAlive, "n3": store.ReasonMemberAlive, "n7": store.ReasonMemberNotFound,
		"": store.ReasonMember, "a/b": store.ReasonMember, strings.Repeat("n", 101): store.ReasonMember,
	} {
		_, err := n.Remove(bg, id, "why")
		requireReason(t, want, err)
	}
	for _, reason := range []string{"", strings.Repeat("x", 1001), "a\x1b[31m", "\xff"} {
		_, err := n.Remove(bg, "n4", reason)
		requireReason(t, store.ReasonRemoval, err)
	}
	require.NotContains(t, n.words(), "REMOVED")

	n.wall.move(time.Second)
	got, err := n.Remove(bg, "n4", "its disk burnt")
	require.NoError(t, err)
	want := declared(4, 2, membership.Removed)
	want.DeclaredAt = 1_700_000_001_000
	require.Equal(t, want, got)
	require.Regexp(t, `level=WARN msg="member removed" member=n4 version=2 liveness=DOWN reason="its disk burnt"`, n.log.String())
	require.Equal(t, "n1:1:UP:ALIVE n2:4:UP:ALIVE n3:1:UP:SUSPECT n5:1:DRAINING:LEFT n6:1:JOINING:UNSEEN n4:2:REMOVED:DOWN", n.words(), "removed ones stand last")
	for _, id := range []string{"n5", "n6"} {
		_, err := n.Remove(bg, id, strings.Repeat("x", 1000))
		require.NoError(t, err)
	}
	// Again changes nothing, and old news neither.
	again, err := n.Remove(bg, "n4", "again")
	require.NoError(t, err)
	require.Equal(t, want, again)
	require.Contains(t, n.report(t, view...), want)

	n = restart(t, n, fs)
	_, err = n.Remove(bg, "n2", "why")
	requireReason(t, store.ReasonMembersUnseen, err)
	again, err = n.Remove(bg, "n4", "again")
	require.NoError(t, err)
	require.Equal(t, want, again)
	n.report(t, member(1, 1, membership.Up, Alive), member(2, 4, membership.Up, Down))
	n.wall.move(time.Minute)
	_, err = n.Remove(bg, "n2", "why")
	require.NoError(t, err, "a minute is fresh enough")
	n.wall.move(time.Millisecond)
	_, err = n.Remove(bg, "n3", "why")
	requireReason(t, store.ReasonMembersUnseen, err)
}

// Danger: a member that was taken out goes on as if nothing had happened.
func TestRemovedMemberSaysSo(t *testing.T) {
	n := start(t, vfs.NewMem())
	n.report(t, member(1, 2, membership.Removed, Alive))
	require.Equal(t, "removed ", problems(n.Problems()))
}

// Danger: who follows the members misses a change, or is woken by each report.
func TestViewTellsWhenItIsNotTheNewest(t *testing.T) {
	n := start(t, vfs.NewMem())
	first := n.View()
	n.report(t, member(1, 1, membership.Up, Alive))
	<-first.Changed
	second := n.View()
	n.wall.move(time.Second)
	n.report(t, member(1, 1, membership.Up, Alive))
	select {
	case <-second.Changed:
		t.Fatal("nothing has changed but the age")
	default:
	}
	require.Equal(t, n.wall.Now(), n.View().Heard)
	for _, change := range []func(){
		func() { n.report(t, member(1, 1, membership.Up, Suspect)) },
		func() { n.report(t, member(1, 2, membership.Draining, Suspect)) },
		func() {
			_, err := n.Report(bg, Report{Verdict: &Verdict{Live: true}, Members: []Member{member(1, 2, membership.Draining, Suspect)}})
			require.NoError(t, err)
		},
		func() { n.report(t, member(2, 1, membership.Up, Down)) },
		func() {
			_, err := n.Remove(bg, "n2", "why")
			require.NoError(t, err)
		},
	} {
		v := n.View()
		change()
		<-v.Changed
	}
}

// Danger: siblings that another node's records brought make one of both disappear.
func TestSiblingsOfARecordAreJoined(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	n.report(t, member(2, 1, membership.Up, Alive))
	newer, err := encode(declared(2, 7, membership.Draining))
	require.NoError(t, err)
	// Without the context of the first: a concurrent write.
	_, err = n.store.System(systemTenant).Write(bg, "n2", newer, store.Causality{HasContext: true})
	require.NoError(t, err)
	n = restart(t, n, fs)
	require.NoError(t, n.Damage())
	require.Equal(t, "n2:7:DRAINING:UNSEEN", n.words())
	n.report(t, member(2, 8, membership.Drained, Left))
	n = restart(t, n, fs)
	require.Equal(t, "n2:8:DRAINED:UNSEEN", n.words())
}

// Danger: one record that can't be read keeps the node from knowing all others, or from starting.
func TestRecordThatIsNoDeclarationIsReportedAndReplaced(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	n.report(t, member(1, 1, membership.Up, Alive), member(2, 1, membership.Up, Alive), member(3, 1, membership.Up, Alive))
	records := n.store.System(systemTenant)
	two, err := membership.Encode(membership.Map{"n2": declared(2, 1, membership.Up), "n3": declared(3, 1, membership.Up)})
	require.NoError(t, err)
	other, err := encode(declared(3, 1, membership.Up))
	require.NoError(t, err)
	for _, value := range [][]byte{nil, []byte("{"), {2, 0}, two, other, bytes.Repeat([]byte{0xff}, 1000)} {
		_, err := records.Write(bg, "n2", value, store.Causality{})
		require.NoError(t, err)
		n = restart(t, n, fs)
		records = n.store.System(systemTenant)
		require.ErrorContains(t, n.Damage(), `"n2"`, "%q", value)
		require.Equal(t, "members ", problems(n.Problems()))
		require.Equal(t, "n1:1:UP:UNSEEN n3:1:UP:UNSEEN", n.words())
	}
	n.report(t, member(2, 1, membership.Up, Alive))
	require.NoError(t, n.Damage())
	require.Empty(t, n.Problems())
	n = restart(t, n, fs)
	require.NoError(t, n.Damage())
	require.Equal(t, "n1:1:UP:UNSEEN n2:1:UP:UNSEEN n3:1:UP:UNSEEN", n.words())
}

// spoil inverts a byte in the middle of a table.
func spoil(t *testing.T, fs vfs.FS, name string) {
	t.Helper()
	f, err := fs.Open(name)
	require.NoError(t, err)
	content, err := io.ReadAll(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	content[100] ^= 0xff
	require.NoError(t, fs.Remove(name))
	f, err = fs.Create(name, 0o440)
	require.NoError(t, err)
	_, err = f.Write(content)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// Danger: a damaged table takes the cluster from a node that can serve everything else.
func TestDamagedTableLeavesAMapInMemory(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	n.report(t, member(1, 1, membership.Up, Alive), member(2, 1, membership.Up, Alive))
	require.NoError(t, n.engine.Flush(bg))
	require.NoError(t, n.engine.Close())
	tables, err := fs.List("data/sst")
	require.NoError(t, err)
	require.NotEmpty(t, tables)
	for _, name := range tables {
		spoil(t, fs, "data/sst/"+name)
	}

	n = start(t, fs)
	require.ErrorIs(t, n.Damage(), engine.ErrCorrupt)
	require.Equal(t, "members ", problems(n.Problems()))
	require.Empty(t, n.View().Members)
	out := n.report(t, member(1, 1, membership.Up, Alive), member(2, 1, membership.Up, Alive), member(3, 1, membership.Up, Down))
	require.Len(t, out, 3, "in memory")
	require.Equal(t, "n1:1:UP:ALIVE n2:1:UP:ALIVE n3:1:UP:DOWN", n.words())
	require.ErrorIs(t, n.Damage(), engine.ErrCorrupt)
	_, err = n.Remove(bg, "n3", "why")
	require.NoError(t, err)
}

// Danger: reports, removals and readers at once tear the view.
func TestConcurrentReportsAndReaders(t *testing.T) {
	n := start(t, vfs.NewMem())
	n.report(t, member(1, 1, membership.Up, Alive), member(2, 1, membership.Up, Down))
	ctx, cancel := context.WithCancel(bg)
	var readers, writers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				v := n.View()
				for i := 1; i < len(v.Members); i++ {
					require.Less(t, v.Members[i-1].Declared.NodeID, v.Members[i].Declared.NodeID)
				}
				select {
				case <-v.Changed:
				case <-ctx.Done():
				}
			}
		})
	}
	for w := range 3 {
		writers.Go(func() {
			for v := range 20 {
				_, err := n.Report(bg, Report{Members: []Member{
					member(1, uint64(v+1), membership.Up, Alive), member(2, 1, membership.Up, Liveness(1+(v+w)%5)), member(3+w, uint64(v+1), membership.Up, Alive),
				}})
				require.NoError(t, err)
			}
		})
	}
	writers.Wait()
	cancel()
	readers.Wait()
	require.Len(t, n.View().Members, 5)
	for _, m := range n.View().Members[2:] {
		require.EqualValues(t, 20, m.Declared.Version)
	}
}
